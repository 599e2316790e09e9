"""Check that a stream can run for days: ``python dev/soak.py``, or ``python dev/soak.py 24`` for a day."""

import json
import logging
import sys
from typing import Any

from streamingvlm.cli.command_line import Command
from streamingvlm.cli.main import run


def main(options: dict[str, Any]):
    """Stream, then print a table and, as the last line, the record; exit with 1 if memory or CPU time has grown."""
    from soak_runner import rows_table, soak

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    record = soak(options)
    print(rows_table(record["rows"]))
    print(json.dumps(record))
    if not record["is_flat"]:
        sys.exit(1)


COMMAND = Command("python dev/soak.py", "soak", plain="hours", text=("question", "autosave"), task=main)

if __name__ == "__main__":
    run(COMMAND, sys.argv[1:])
