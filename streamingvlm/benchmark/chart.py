"""The paper's speed figure: seconds per token along the stream, one line per mode."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

from streamingvlm.plotting import COLOURS, new_figure, save_figure, style_figure

_MEDIAN_WINDOW_TURNS = 10
# The dashed line of the paper's figure: live commentary needs ten tokens a second.
_REAL_TIME_TOKEN_S = 0.1


def draw_modes(modes: Mapping[str, Mapping[str, Any]], path: Path, *, title: str, turn_s: float = 1.0):
    """Plot the modes of a record as a PNG. A cross marks a mode that stopped early.

    Raises ConfigError if matplotlib is not installed, OSError.
    """
    figure = new_figure(figsize=(7, 4))
    panel = figure.subplots()
    for (name, summary), colour in zip(modes.items(), COLOURS, strict=False):
        token_s = _running_median(summary.get("token_s_by_turn", ()))
        times_s = [turn * turn_s for turn in range(len(token_s))]
        panel.plot(times_s, token_s, label=name, color=colour)
        if summary["stop_reason"] and token_s:
            panel.plot(times_s[-1], token_s[-1], "x", color=colour)
    panel.axhline(_REAL_TIME_TOKEN_S, color="#999999", linestyle="--", linewidth=1)
    panel.set(xlabel="stream time, s", ylabel="turn latency per token, s", yscale="log")
    panel.legend(frameon=False)
    save_figure(style_figure(figure, title), path)


def _running_median(values: Sequence[float]) -> list[float]:
    """The median of each value and the values just before it, so that one slow turn does not show as a trend."""
    return [median_high(values[max(0, i + 1 - _MEDIAN_WINDOW_TURNS) : i + 1]) for i in range(len(values))]
