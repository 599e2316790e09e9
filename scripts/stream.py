"""Watch a video and say what happens, second by second: ``python scripts/stream.py match.mp4``, ``--help`` for more."""

from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine(
    "stream", plain="source", text=("query", "previous_text", "alert", "autosave", "output.path")
)


def main(options: dict[str, Any]):
    """Watch. What is imported here takes seconds, which ``--help`` or a misspelt option shall not cost."""
    from watching import watch

    watch(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
