"""Whether a stream can be left on for days: ``python scripts/soak.py``, ``python scripts/soak.py 24`` for a day."""

import json
import logging
import sys
from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine("soak", plain="hours", text=("question", "autosave"))


def main(options: dict[str, Any]):
    """Run, print a table and, as the last line, the record; exit with 1 where something has grown."""
    from soaking import soak, table

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    record = soak(options)
    print(table(record["rows"]))
    print(json.dumps(record))
    if not record["is_flat"]:
        sys.exit(1)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
