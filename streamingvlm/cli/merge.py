"""Merge an adapter into its base model: ``python scripts/merge.py ADAPTER_FOLDER``; ``--help`` lists options."""

from typing import Any

from streamingvlm.cli.command_line import CommandLine, run

COMMAND_LINE = CommandLine("merge", plain="adapter", text=("target", "base"))


def main(options: dict[str, Any]):
    """Merge the adapter into its base model and print the folder of the result."""
    from streamingvlm.errors import ConfigError
    from streamingvlm.training.adapters import merge

    if options["adapter"] is None:
        raise ConfigError("no adapter given; run: python scripts/merge.py ADAPTER_FOLDER target=FOLDER")
    adapter = options["adapter"].rstrip("/")
    target = options["target"] or f"{adapter}-merged"
    merged = merge(adapter, target, base=options["base"], dtype=options["dtype"])
    print(f"wrote {merged}; to stream with it, give model={target}")


if __name__ == "__main__":
    run(main, COMMAND_LINE)
