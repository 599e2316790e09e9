"""What all figures share: matplotlib without a screen, colours that most people can tell apart, whole files."""

from io import BytesIO
from pathlib import Path
from typing import Any

from streamingvlm.atomic import write_bytes
from streamingvlm.errors import ConfigError

# Okabe and Ito's colours, which people who see few colours can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def new_figure(**settings: Any):
    """An empty figure of matplotlib. Raises ConfigError where that is not installed."""
    try:
        # Not pyplot, which keeps figures and picks a screen.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('figures are drawn by matplotlib; pip install "streamingvlm[eval]"') from error
    return Figure(layout="constrained", **settings)


def dressed(figure, title: str):
    """Give a figure its title, and its panels a light grid."""
    figure.suptitle(title, fontsize=11)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure, path: Path):
    """Write a figure as a PNG: the same figure makes the same file. Raises OSError."""
    image = BytesIO()
    # Without the name and version of the program.
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    write_bytes(path, image.getvalue())
