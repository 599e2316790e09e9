"""The cost of asking a language model, printed and checked before the first request."""

import sys
from collections.abc import Mapping
from typing import Any

from streamingvlm.endpoint import CostEstimate
from streamingvlm.errors import ConfigError


def check_cost(estimate: CostEstimate, settings: Mapping[str, Any], group: str):
    """Print the estimate; exit after it if ``estimate_only`` is set, raise ConfigError above ``max_cost_usd``.

    settings: the group of options with these two; group: its name.
    """
    print(estimate, file=sys.stderr, flush=True)
    if settings["estimate_only"]:
        sys.exit(0)
    limit_usd = settings["max_cost_usd"]
    if limit_usd is not None and not (estimate.cost_usd is not None and estimate.cost_usd <= limit_usd):
        raise ConfigError(
            f"{group}.max_cost_usd={limit_usd:g} is below the estimate; raise it, or give the prices of the endpoint"
        )
