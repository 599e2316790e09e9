"""Serve live commentary over HTTP, with a page for browsers: ``python scripts/serve.py``, ``--help`` for more."""

from typing import Any

from streamingvlm.cli.command_line import CommandLine, run

COMMAND_LINE = CommandLine("serve", plain="folder", text=("api_key_file", "host"))


def main(options: dict[str, Any]):
    """Serve. The import takes seconds, so that it waits until the command line has been checked."""
    from serve_runner import serve

    serve(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
