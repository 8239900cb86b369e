"""`mod-edge init`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import ForceOption, require_export_extra
from mod_edge.commands.console import out, printable, progress, reports_errors, si
from mod_edge.errors import ConfigError


@reports_errors
def init(
    preset: Annotated[str, typer.Argument(help="narrator, trained; or tiny, 135m, 1b, 8b.")],
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder to make.")],
    seed: Annotated[
        int | None, typer.Option(help="Seed of random weights.", show_default="0")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a checkpoint: the trained one that comes along, or random weights to measure with."""
    require_export_extra()
    from mod_edge.model.presets import init_checkpoint
    from mod_edge.model.shipped import CARD_FILE, NAME, copy_shipped

    if preset == NAME:
        if seed is not None:
            raise ConfigError(f"--seed is of random weights; {NAME} is trained: leave it away")
        size = copy_shipped(folder, force=force)
        out.print(
            f"wrote {printable(str(folder))}: {NAME}, {si(size, 'B')} of trained weights; what it "
            f"can and cannot do stands in its {CARD_FILE}"
        )
        return

    with progress("init") as show:
        size = init_checkpoint(preset, folder, seed=seed or 0, force=force, on_progress=show)
    out.print(
        f"wrote {printable(str(folder))}: preset {preset}, {si(size, 'B')} of random weights, "
        f"seed {seed or 0}"
    )
