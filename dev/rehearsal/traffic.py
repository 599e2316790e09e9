"""What the host does for a fake device: operators launched, waits, and bytes over the bus, each by thread and line."""

import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_HERE = str(Path(__file__).parent)
_SHOWN = (str(_CHECKOUT / "streamingvlm"), str(_CHECKOUT / "tests"), "transformers/models")


@dataclass(frozen=True)
class Wait:
    """The host waited for the device. thread: ``vision`` or ``model``; line: where; reason: the operator."""

    thread: str
    line: str
    reason: str


@dataclass(frozen=True)
class Upload:
    """A copy from host to device."""

    thread: str
    line: str
    num_bytes: int
    is_pinned: bool


@dataclass
class Traffic:
    """Everything since `clear`."""

    operators: Counter[str] = field(default_factory=Counter)
    waits: list[Wait] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)

    def clear(self):
        """Forget everything."""
        self.operators.clear()
        self.waits.clear()
        self.uploads.clear()

    def add_wait(self, reason: str):
        """Count a wait of the host."""
        self.waits.append(Wait(current_thread(), current_line(), reason))

    def add_upload(self, num_bytes: int, is_pinned: bool):
        """Count a copy from host to device."""
        self.uploads.append(Upload(current_thread(), current_line(), num_bytes, is_pinned))


def current_thread() -> str:
    """Return ``vision`` in the thread of the vision tower, else ``model``."""
    return "vision" if threading.current_thread().name.startswith("vision") else "model"


def current_line() -> str:
    """Return the innermost line of the package, of transformers' models or of a test, as ``file.py:123``."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE) and any(shown in name for shown in _SHOWN):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
