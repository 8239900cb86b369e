"""`mod-edge pretrain`."""

from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    ForceOption,
    NewCheckpointArgument,
    PhotographsOption,
    ThreadsOption,
    require_extra,
    use_threads,
)
from mod_edge.commands.console import out, printable, progress, reports_errors
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def pretrain(
    folder: NewCheckpointArgument,
    photographs: PhotographsOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; default: 12000.")
    ] = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
) -> None:
    """Pretrain a small vision tower on synthetic scenes, as for the bundled model."""
    use_threads(threads)
    require_extra("train")
    with quiet_imports():
        from mod_edge.toy_scenes.pretraining import PretrainingOptions
        from mod_edge.toy_scenes.small_model import write_base

    options = PretrainingOptions() if steps is None else PretrainingOptions(steps=steps)
    with progress("pretrain") as show:
        write_base(folder, photographs=photographs, options=options, force=force, on_step=show)
    out.print(f"wrote {printable(str(folder))}: {options.steps} steps of pretraining")
