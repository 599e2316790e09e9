"""Make the modules of ``scripts/`` importable for the programs in ``dev/``."""

import sys
from pathlib import Path

_SCRIPTS = str(Path(__file__).resolve().parents[1] / "scripts")

if _SCRIPTS not in sys.path:
    sys.path.append(_SCRIPTS)
