"""Find the highest load that a machine sustains, in a few trials."""

from collections.abc import Callable


def highest_passing(passes: Callable[[int], bool], *, step: int = 1, limit: int) -> int:
    """Return the highest multiple of ``step``, up to ``limit``, that ``passes``; 0 if none does.

    Doubles the load until a trial fails, then bisects. Assumes that every load below a passing one passes too.
    """
    good, bad, load = 0, limit // step + 1, 1
    while good + 1 < bad:
        load = min(max(1, 2 * good), bad - 1) if bad > limit // step else (good + bad) // 2
        if passes(load * step):
            good = load
        else:
            bad = load
    return good * step
