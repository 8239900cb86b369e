"""`mod-edge scenes`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import ForceOption, PhotographsOption
from mod_edge.commands.console import out, printable, progress, reports_errors
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def scenes(
    folder: Annotated[Path, typer.Argument(help="Data set folder to create.")],
    train: Annotated[int, typer.Option(min=0, help="Number of training clips.")] = 4000,
    validation: Annotated[int, typer.Option(min=0, help="Number of validation clips.")] = 100,
    test: Annotated[int, typer.Option(min=0, help="Number of test clips.")] = 100,
    combinations: Annotated[
        int,
        typer.Option(
            min=0, help="Number of test clips with colour and shape pairs that no other split has."
        ),
    ] = 100,
    duration: Annotated[float, typer.Option(min=8, help="Length of each clip, in seconds.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    photographs: PhotographsOption = None,
    force: ForceOption = False,
) -> None:
    """Generate a synthetic data set: videos of simple scenes with narration and questions."""
    with quiet_imports():
        from mod_edge.toy_scenes.scenes import write_scenes

    counts = {
        "train": train,
        "validation": validation,
        "test": test,
        "combinations": combinations,
    }
    with progress("scenes") as show:
        write_scenes(
            folder,
            counts,
            seed=seed,
            force=force,
            photographs=photographs,
            duration_s=duration,
            on_step=show,
        )
    splits = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    out.print(f"wrote {printable(str(folder))}: {splits} clips, seed {seed}")
