"""`mod-edge threshold`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    ClipsOption,
    DataOption,
    ThreadsOption,
    ToleranceOption,
    use_threads,
)
from mod_edge.commands.console import out, print_table, printable, progress, reports_errors
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def threshold(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    data: DataOption,
    clips: ClipsOption = None,
    threshold: Annotated[
        list[float] | None, typer.Option(min=0, max=1, help="Threshold to try (0-1). Repeatable.")
    ] = None,
    tolerance: ToleranceOption = 1.0,
    threads: ThreadsOption = None,
) -> None:
    """Choose the speaking threshold on the validation split and store it in the checkpoint."""
    use_threads(threads)
    with quiet_imports():
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
        out.print(f"all thresholds score the same; {name} keeps its threshold")
        return
    adopt_threshold(checkpoint, choice.threshold)
    out.print(f"threshold {choice.threshold:g} written to {name}")
