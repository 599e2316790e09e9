"""Run a benchmark through the session that users run: ``python scripts/evaluate.py benchmark=pitch``, or ``--help``."""

from importlib import import_module
from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine(
    "evaluate",
    plain="benchmark",
    text=(
        *("result_path", "record_path", "report_path", "results_path", "folder"),
        *("transcripts", "segments", "events", "questions", "video_root", "work_folder"),
    ),
)


def main(options: dict[str, Any]):
    """Run one of ``evaluations/``; ``result_path`` names a JSON file that keeps what was measured."""
    import_module(f"evaluations.{options['benchmark']}").evaluate(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
