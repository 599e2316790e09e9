"""Measure the speed of streaming on this machine: ``python scripts/bench.py model=7b``, ``--help`` for more."""

from typing import Any

from streamingvlm.cli.architectures import architecture_names
from streamingvlm.cli.command_line import CommandLine, run


class BenchCommandLine(CommandLine):
    """A command line where ``model=`` also takes the name of an architecture, for random weights."""

    def _checkpoint(self, value: str) -> str:
        return f"architecture={value}" if value in architecture_names() else super()._checkpoint(value)


COMMAND_LINE = BenchCommandLine("bench", plain="footage.source", text=("footage.source", "result_folder"))


def main(options: dict[str, Any]):
    """Run the benchmark. The import takes seconds, so that it waits until the command line has been checked."""
    from bench_runner import bench

    bench(options)


if __name__ == "__main__":
    run(main, COMMAND_LINE)
