"""`mod-edge scenes`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import ForceOption, explained_imports
from mod_edge.commands.console import out, printable, progress, reports_errors


@reports_errors
def scenes(
    folder: Annotated[Path, typer.Argument(help="Data set folder to make.")],
    train: Annotated[int, typer.Option(min=0, help="Clips to train on.")] = 4000,
    validation: Annotated[int, typer.Option(min=0, help="Clips to choose by.")] = 100,
    test: Annotated[int, typer.Option(min=0, help="Clips to measure on.")] = 100,
    combinations: Annotated[
        int, typer.Option(min=0, help="Clips of colours and shapes that no other split combines.")
    ] = 100,
    duration: Annotated[float, typer.Option(min=8, help="Seconds of a clip.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn and said.")] = 0,
    photographs: Annotated[
        Path | None, typer.Option(help="Video of which backgrounds are cut.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Draw a data set: videos of simple scenes with a narration and questions to each."""
    with explained_imports():
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
