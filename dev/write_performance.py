"""Write the results of benchmarks into the performance page: ``python dev/write_performance.py``."""

import sys
from pathlib import Path
from typing import Any

from streamingvlm.cli.command_line import Command
from streamingvlm.cli.main import run


def main(options: dict[str, Any]):
    """Read the records of the folder and write the page."""
    from streamingvlm.benchmark.performance_page import read_records, write_page

    records = read_records(Path(options["folder"]))
    write_page(records, Path(options["path"]))
    print(f"{options['path']}: {len(records)} records from {options['folder']}")


COMMAND = Command("python dev/write_performance.py", "write_performance", plain="folder", text=("path",), task=main)

if __name__ == "__main__":
    run(COMMAND, sys.argv[1:])
