"""`mod-edge init`."""

from typing import Annotated

import typer

from mod_edge.commands.arguments import ForceOption, NewCheckpointArgument, require_extra
from mod_edge.commands.console import out, printable, progress, reports_errors, si
from mod_edge.errors import ConfigError


@reports_errors
def init(
    preset: Annotated[
        str, typer.Argument(help="narrator (trained), or tiny, 135m, 1b or 8b (random weights).")
    ],
    folder: NewCheckpointArgument,
    seed: Annotated[int | None, typer.Option(help="Seed for random weights; default: 0.")] = None,
    force: ForceOption = False,
) -> None:
    """Create a checkpoint: the bundled trained model, or random weights for benchmarks."""
    require_extra("export")
    from mod_edge.model.presets import init_checkpoint
    from mod_edge.model.shipped import CARD_FILE, NAME, copy_shipped

    if preset == NAME:
        if seed is not None:
            raise ConfigError(
                f"--seed applies to random weights only; {NAME} is trained, omit --seed"
            )
        size = copy_shipped(folder, force=force)
        out.print(
            f"wrote {printable(str(folder))}: {NAME}, {si(size, 'B')} of trained weights; see "
            f"its {CARD_FILE} for what it can and cannot do"
        )
        return

    with progress("init") as show:
        size = init_checkpoint(preset, folder, seed=seed or 0, force=force, on_progress=show)
    out.print(
        f"wrote {printable(str(folder))}: preset {preset}, {si(size, 'B')} of random weights, "
        f"seed {seed or 0}"
    )
