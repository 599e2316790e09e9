"""How fast streams run on this machine: ``python scripts/bench.py model=7b``, ``--help`` for more."""

from typing import Any

from architectures import architecture_names
from command_line import CommandLine, run


class BenchCommandLine(CommandLine):
    """Takes the name of an architecture for a model: one with random weights."""

    def _checkpoint(self, value: str) -> str:
        return f"architecture={value}" if value in architecture_names() else super()._checkpoint(value)


COMMAND_LINE = BenchCommandLine("bench", plain="footage.source", text=("footage.source", "result_folder"))


def main(options: dict[str, Any]):
    """Measure. What is imported here takes seconds, which ``--help`` or a misspelt option shall not cost."""
    from benching import bench

    bench(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
