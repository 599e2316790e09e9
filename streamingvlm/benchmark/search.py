"""The highest load that a machine bears, found in a few trials."""

from collections.abc import Callable


def highest(passes: Callable[[int], bool], *, step: int = 1, most: int) -> int:
    """The highest multiple of ``step``, up to ``most``, that ``passes``; 0 where none does.

    What passes is taken to pass at every lower load. Loads are doubled until one fails, then halved between.
    """
    good, bad, load = 0, most // step + 1, 1
    while good + 1 < bad:
        load = min(max(1, 2 * good), bad - 1) if bad > most // step else (good + bad) // 2
        if passes(load * step):
            good = load
        else:
            bad = load
    return good * step
