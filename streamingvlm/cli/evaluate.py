"""``streamingvlm evaluate``: run a benchmark through the session that users run."""

from importlib import import_module
from typing import Any


def evaluate(options: dict[str, Any]):
    """Run one of ``evaluations/``. If given, ``result_path`` is the JSON file of the result."""
    import_module(f"streamingvlm.cli.evaluations.{options['benchmark']}").evaluate(options)
