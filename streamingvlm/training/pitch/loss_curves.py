"""Loss curves of a recipe, as JSON and as a plot."""

import json
from pathlib import Path

from streamingvlm.training.pitch.recipe import RecipeRun


def write_loss_curves(run: RecipeRun, path: str | Path):
    """Write the loss curve of every stage as JSON and, if matplotlib is installed, as a plot beside it."""
    curves = run.loss_curves()
    path = Path(path)
    path.write_text(json.dumps({"history": run.history(), "loss_curves": curves}, indent=1), encoding="utf-8")
    try:
        import matplotlib
    except ImportError:  # a development dependency
        return
    matplotlib.use("Agg")
    _plot(curves, path.with_suffix(".png"))


def _plot(curves: dict[str, list[dict[str, float]]], path: Path):
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3), layout="constrained", squeeze=False)
    for panel, (name, curve) in zip(panels[0], curves.items(), strict=True):
        panel.plot([point["step"] for point in curve], [point["loss"] for point in curve], linewidth=1)
        panel.set(title=name, xlabel="step", ylabel="loss", yscale="log")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
