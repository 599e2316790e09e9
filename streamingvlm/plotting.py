"""Figures by matplotlib: no display, colours safe for colour-blind readers, atomic and reproducible files."""

from io import BytesIO
from pathlib import Path
from typing import Any

from streamingvlm.atomic import write_bytes
from streamingvlm.errors import ConfigError

# The palette of Okabe and Ito, safe for colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def new_figure(**settings: Any):
    """Return an empty matplotlib figure. Raises ConfigError if matplotlib is not installed."""
    try:
        # Not pyplot, which keeps figures in memory and selects a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            'figures need matplotlib, which is not installed; pip install "streamingvlm[eval]"'
        ) from error
    return Figure(layout="constrained", **settings)


def style_figure(figure, title: str):
    """Set the title of a figure and a light grid in its panels; return the figure."""
    figure.suptitle(title, fontsize=11)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure, path: Path):
    """Write a figure as PNG; the same figure gives the same bytes. Raises OSError."""
    image = BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})  # without the version of matplotlib
    write_bytes(path, image.getvalue())
