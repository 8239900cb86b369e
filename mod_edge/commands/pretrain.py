"""`mod-edge pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    TRAIN_PACKAGES,
    ForceOption,
    explained_imports,
    require_packages,
)
from mod_edge.commands.console import out, printable, progress, reports_errors


@reports_errors
def pretrain(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder to make.")],
    photographs: Annotated[
        Path | None, typer.Option(help="Video of which backgrounds are cut.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training; else as the shipped model's.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Train a small vision tower on synthetic scenes: what the shipped model started from."""
    require_packages(TRAIN_PACKAGES, "on the machine where checkpoints are trained", "train")
    with explained_imports():
        from mod_edge.toy_scenes.pretraining import PretrainingOptions
        from mod_edge.toy_scenes.small_model import write_base

    options = PretrainingOptions() if steps is None else PretrainingOptions(steps=steps)
    with progress("pretrain") as show:
        write_base(folder, photographs=photographs, options=options, force=force, on_step=show)
    out.print(f"wrote {printable(str(folder))}: {options.steps} steps of pretraining")
