"""Stream a video to live commentary: ``python scripts/stream.py match.mp4``, ``--help`` for more."""

from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine(
    "stream", plain="source", text=("query", "previous_text", "alert", "autosave", "output.path"), takes_several=True
)


def main(options: dict[str, Any]):
    """Stream. The import takes seconds, so that it waits until the command line has been checked."""
    from terminal import spinner

    with spinner("starting"):
        from stream_runner import stream

    stream(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
