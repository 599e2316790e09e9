"""Watch an endless video and say what happens, as it happens.

    from streamingvlm import StreamingSession

    session = StreamingSession.from_pretrained("pitch")
    for line in session.stream("match.mp4"):
        print(line)

Importing the package loads no model and touches no device. The names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from streamingvlm.config import CacheConfig, LiveConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import StreamingVLMError

if TYPE_CHECKING:
    from streamingvlm.inference.alert import Alert
    from streamingvlm.inference.commentary import Commentary
    from streamingvlm.inference.session import StreamingSession
    from streamingvlm.model.loading import load_model
    from streamingvlm.video.live import PushedFrames

__all__ = [
    "Alert",
    "CacheConfig",
    "Commentary",
    "LiveConfig",
    "PushedFrames",
    "SamplingConfig",
    "StreamingSession",
    "StreamingVLMError",
    "VideoConfig",
    "__version__",
    "load_model",
]

__version__ = "0.1.0"

_MODULES = {
    "Alert": "streamingvlm.inference.alert",
    "Commentary": "streamingvlm.inference.commentary",
    "PushedFrames": "streamingvlm.video.live",
    "StreamingSession": "streamingvlm.inference.session",
    "load_model": "streamingvlm.model.loading",
}

if not TYPE_CHECKING:  # to a type checker, any name would exist

    def __getattr__(name: str):
        # torch and transformers take seconds to import, and a config or an error needs neither.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
