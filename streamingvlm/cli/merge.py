"""``streamingvlm merge``: merge an adapter into its base model."""

from typing import Any

from streamingvlm.training.adapters import merge


def merge_adapter(options: dict[str, Any]):
    """Merge the adapter into its base model and print the folder of the result."""
    adapter = options["adapter"].rstrip("/")
    target = options["target"] or f"{adapter}-merged"
    merged = merge(adapter, target, base=options["base"], dtype=options["dtype"])
    print(f"wrote {merged}; to stream with it, give model={target}")
