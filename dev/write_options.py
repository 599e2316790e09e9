"""Write docs/options.md from the comments in configs/: ``python dev/write_options.py``."""

from pathlib import Path

from streamingvlm.cli.options_page import options_page
from streamingvlm.cli.verbs import VERBS

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

if __name__ == "__main__":
    PAGE.write_text(options_page(VERBS), encoding="utf-8")
    print(f"wrote {PAGE}")
