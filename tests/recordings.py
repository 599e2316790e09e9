"""Where recorded runs of the released code are."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CARRIED_GOLDEN = ROOT / "tests" / "data" / "golden"


def full_golden_folder() -> Path | None:
    """Return the full recording where it is beside the checkout."""
    beside = (ROOT / "shared" / "golden", ROOT.parent / "shared" / "golden")
    return next((folder for folder in beside if folder.is_dir()), None)


def golden_folders() -> list[Path]:
    """List the folders of recorded runs: the carried one, and another if it is named or the full one is at hand."""
    named = os.environ.get("STREAMINGVLM_GOLDEN")
    other = Path(named) if named else full_golden_folder()
    return [CARRIED_GOLDEN, other] if other else [CARRIED_GOLDEN]
