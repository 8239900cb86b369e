"""The plot of a training run: both losses over the steps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mod_edge.native.package_faults import explained_imports

SIZE_INCHES = (8.0, 4.5)
SMOOTHED_SHARE = 0.02  # the line is the mean over this share of all steps


def plot_losses(
    lm_losses: Sequence[float | None], stream_losses: Sequence[float | None], path: Path
) -> None:
    """Plot both losses (per step, without None) and their running means as a PNG at `path`.

    Raises:
        BackendError: matplotlib is not installed, or does not load.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES)
    axes = figure.add_subplot()
    curves = (
        ("replies (LM loss)", lm_losses, "C0"),
        ("decisions (streaming loss)", stream_losses, "C1"),
    )
    for name, losses, colour in curves:
        steps = [step for step, loss in enumerate(losses, start=1) if loss is not None]
        known = [loss for loss in losses if loss is not None]
        if not known:
            continue
        width = max(1, round(SMOOTHED_SHARE * len(known)))
        axes.plot(steps, known, color=colour, alpha=0.2, linewidth=0.5)
        means = np.convolve(known, np.full(width, 1 / width), "valid")
        axes.plot(steps[width - 1 :], means, color=colour, label=name)
    axes.set(xlabel="step", ylabel="cross-entropy (nats)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def require_matplotlib() -> None:
    """Check before a long training run that its plot can be drawn.

    Raises:
        BackendError: matplotlib is not installed, or does not load.
    """
    with explained_imports("matplotlib plots the losses"):
        import matplotlib  # noqa: F401
