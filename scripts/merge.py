"""Make an ordinary checkpoint of an adapter: ``python scripts/merge.py ADAPTER_FOLDER``, ``--help`` for more."""

from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine("merge", plain="adapter", text=("target", "base"))


def main(options: dict[str, Any]):
    """Merge the adapter into its base model and say where the result is."""
    from streamingvlm.errors import ConfigError
    from streamingvlm.training.adapters import merge

    if options["adapter"] is None:
        raise ConfigError("which adapter? python scripts/merge.py ADAPTER_FOLDER target=FOLDER")
    adapter = options["adapter"].rstrip("/")
    target = options["target"] or f"{adapter}-merged"
    print(f"{merge(adapter, target, base=options['base'], dtype=options['dtype'])} streams with model={target}")


if __name__ == "__main__":
    run(main, COMMAND_LINE)
