"""Run a benchmark through the session that users run: ``python scripts/evaluate.py benchmark=pitch``, or ``--help``."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from streamingvlm.cli.command_line import CommandLine, run

from streamingvlm.errors import ConfigError

RENAMED = {"chunk_s": "clip_s"}


class EvaluateCommandLine(CommandLine):
    """The command line of this script, with errors that name the new names of renamed options."""

    def overrides(self, words: Sequence[str]) -> list[str]:
        """Return the words as Hydra's overrides. Raises ConfigError, also for an option that was renamed."""
        for word in words:
            name, is_option, value = word.partition("=")
            if is_option and name in RENAMED:
                raise ConfigError(f"{word}: {name} was renamed; write {RENAMED[name]}={value}")
        return super().overrides(words)


COMMAND_LINE = EvaluateCommandLine(
    "evaluate",
    plain="benchmark",
    text=(
        *("result_path", "record_path", "report_path", "results_path", "folder"),
        *("transcripts", "segments", "events", "questions", "video_root", "work_folder"),
    ),
)


def main(options: dict[str, Any]):
    """Run one of ``evaluations/``. If given, ``result_path`` is the JSON file of the result."""
    import_module(f"evaluations.{options['benchmark']}").evaluate(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
