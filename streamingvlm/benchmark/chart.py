"""The paper's figure of speed: seconds a token along the stream, one line a mode."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamingvlm.plotting import COLOURS, new_figure, save_figure, style_figure

_SMOOTHED_TURNS = 10
# Ten tokens a second, which a live commentator needs: the line in the paper's figure.
_REAL_TIME_TOKEN_S = 0.1


def draw_modes(modes: Mapping[str, Mapping[str, Any]], path: Path, *, title: str, turn_s: float = 1.0):
    """Draw the modes of a record as a PNG. Raises ConfigError where matplotlib is not installed, OSError."""
    figure = new_figure(figsize=(7, 4))
    panel = figure.subplots()
    for (name, figures), colour in zip(modes.items(), COLOURS, strict=False):
        token_s = _smoothed(figures.get("token_s_by_turn", ()))
        times_s = [turn * turn_s for turn in range(len(token_s))]
        panel.plot(times_s, token_s, label=name, color=colour)
        if figures["ended"] and token_s:
            panel.plot(times_s[-1], token_s[-1], "x", color=colour)
    panel.axhline(_REAL_TIME_TOKEN_S, color="#999999", linestyle="--", linewidth=1)
    panel.set(xlabel="stream, s", ylabel="s a token, all work", yscale="log")
    panel.legend(frameon=False)
    save_figure(style_figure(figure, title), path)


def _smoothed(values: Sequence[float]) -> list[float]:
    """The median of each value and those just before it: one slow turn is not a trend."""
    parts = (values[max(0, place + 1 - _SMOOTHED_TURNS) : place + 1] for place in range(len(values)))
    return [sorted(part)[len(part) // 2] for part in parts]
