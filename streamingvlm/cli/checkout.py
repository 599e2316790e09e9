"""The git commit of the checkout, for the records of benchmarks."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """Return the commit of the checkout, with a + if tracked files have changed; None outside a checkout."""
    if not (ROOT / ".git").exists():  # installed: a checkout around it has nothing to do with this package
        return None
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")
