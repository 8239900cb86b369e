"""The plots of the page of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paper_tables.arms import ARMS, Run
from benchmarks.paper_tables.measures import (
    F1,
    LM_PPL,
    Measure,
    Results,
    arm_estimate,
    values_of,
)
from benchmarks.paper_tables.results import Result
from mod_edge.training.plot import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

F1_FILE, PPL_FILE, LOSSES_FILE = "f1.png", "lm-ppl.png", "losses.png"
DPI = 100
WIDTH_INCHES = 8.0


def draw_all(results: Results, baselines: Mapping[str, float], folder: Path) -> None:
    """Write the plots of at least one result into `folder`; `baselines` is F1 by name.

    Raises:
        BackendError: matplotlib is not installed.
    """
    require_matplotlib()
    arms = [name for name in ARMS if any(run.arm.name == name for run in results)]
    _draw_measure(results, arms, F1, baselines, folder / F1_FILE)
    _draw_measure(results, arms, LM_PPL, {}, folder / PPL_FILE)
    _draw_losses(results, folder / LOSSES_FILE)


def _draw_measure(
    results: Results,
    arms: Sequence[str],
    measure: Measure,
    baselines: Mapping[str, float],
    path: Path,
) -> None:
    figure = _figure(1.6 + 0.3 * len(arms))
    axes = figure.add_subplot()
    for place, arm in enumerate(arms):
        values = list(values_of(results, arm, measure).values())
        found = arm_estimate(results, arm, measure)
        if found is None:
            continue
        axes.errorbar(found.mean, place, xerr=found.half_width or 0, fmt="o", color="C0", capsize=4)
        axes.plot(values, [place] * len(values), "|", color="C1", markersize=9)
    for number, (name, value) in enumerate(baselines.items()):
        axes.axvline(value, color=f"C{2 + number}", linestyle=":", label=name)
    if baselines:
        axes.legend(fontsize=8)
    axes.set_yticks(range(len(arms)), [ARMS[arm].title for arm in arms])
    axes.invert_yaxis()
    direction = "higher" if measure.is_higher_better else "lower"
    axes.set_xlabel(f"{measure.title} ({direction} is better): mean, 95 % interval, each seed")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _draw_losses(results: Results, path: Path) -> None:
    first = _first_of_each_arm(results)
    figure = _figure(3.6)
    for place, (title, name) in enumerate(
        (("replies (LM loss)", "lm"), ("decisions (streaming loss)", "stream"))
    ):
        axes: Axes = figure.add_subplot(1, 2, place + 1)
        for run, result in first.items():
            losses = result.losses[name]
            stretch = result.training["steps"] / len(losses)
            steps = [stretch * (index + 0.5) for index in range(len(losses))]
            axes.plot(steps, losses, label=f"{run.arm.title} (seed {run.seed})", linewidth=1)
        axes.set(title=title, xlabel="step", ylabel="nats", yscale="log")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    _save(figure, path)


def _first_of_each_arm(results: Results) -> dict[Run, Result]:
    first: dict[str, Run] = {}
    for run in results:
        first.setdefault(run.arm.name, run)
    return {run: results[run] for run in first.values()}


def _figure(height_inches: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    # without the library's version, so that equal plots are equal files
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
