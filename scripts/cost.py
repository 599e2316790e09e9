"""What asking a language model will cost, told before the first question."""

import sys
from collections.abc import Mapping
from typing import Any

from streamingvlm.endpoint import CostEstimate
from streamingvlm.errors import ConfigError


def tell_estimate(estimate: CostEstimate, settings: Mapping[str, Any], group: str):
    """Show the estimate; stop where that is all that was asked for, or it is too much.

    settings: the group of options with ``estimate_only`` and ``max_cost_usd``; group: its name.
    """
    print(estimate, file=sys.stderr, flush=True)
    if settings["estimate_only"]:
        sys.exit(0)
    limit_usd = settings["max_cost_usd"]
    if limit_usd is not None and not (estimate.cost_usd is not None and estimate.cost_usd <= limit_usd):
        raise ConfigError(
            f"{group}.max_cost_usd={limit_usd:g} is below the estimate; raise it, or give the prices of the endpoint"
        )
