"""Write the page of performance from what benchmarks measured: ``python scripts/write_performance.py``."""

from pathlib import Path
from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine("write_performance", plain="folder", text=("path",))


def main(options: dict[str, Any]):
    """Read the records, write the page, and say what was read."""
    from streamingvlm.benchmark.page import read_records, write_page

    records = read_records(Path(options["folder"]))
    write_page(records, Path(options["path"]))
    print(f"{options['path']}: {len(records)} records of {options['folder']}")


if __name__ == "__main__":
    run(main, COMMAND_LINE)
