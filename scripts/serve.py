"""Serve live commentary over HTTP, and a page: ``python scripts/serve.py``, ``--help`` for more."""

from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine("serve", plain="folder", text=("api_key_file", "host"))


def main(options: dict[str, Any]):
    """Serve. What is imported here takes seconds, which ``--help`` or a misspelt option shall not cost."""
    from hosting import host

    host(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
