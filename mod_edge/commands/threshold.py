"""`mod-edge threshold`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import DataOption, explained_imports
from mod_edge.commands.console import out, print_table, printable, progress, reports_errors


@reports_errors
def threshold(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    data: DataOption,
    clips: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="To try; more than once.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Seconds that a right caption may be off.")
    ] = 1.0,
) -> None:
    """Choose when a trained model speaks: the best threshold on the split `validation`."""
    with explained_imports():
        from mod_edge.data.clips import read_clips
        from mod_edge.evaluation.thresholds import (
            SPLIT,
            THRESHOLDS,
            adopt_threshold,
            choose_threshold,
        )

    tried = tuple(threshold or THRESHOLDS)
    with progress("threshold") as show:
        choice = choose_threshold(
            checkpoint,
            read_clips(data, SPLIT)[:clips],
            tried,
            tolerance_s=tolerance,
            on_step=show,
        )
    rows = [
        (f"{each:g}", f"{f1:.3f}", f"{moment_f1:.3f}")
        for each, f1, moment_f1 in zip(tried, choice.f1, choice.moment_f1, strict=True)
    ]
    print_table(("threshold", "F1", "moment F1"), rows)
    name = printable(str(checkpoint))
    if choice.is_arbitrary:
        out.print(f"none is better than another: {name} keeps its threshold")
        return
    adopt_threshold(checkpoint, choice.threshold)
    out.print(f"{choice.threshold:g} is now the threshold of {name}")
