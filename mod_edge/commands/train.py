"""`mod-edge train`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    DataOption,
    ForceOption,
    JsonOption,
    ThreadsOption,
    require_extra,
    use_threads,
)
from mod_edge.commands.console import (
    out,
    print_json,
    print_warning,
    printable,
    progress,
    reports_errors,
    si,
)
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def train(
    data: DataOption,
    config: Annotated[Path, typer.Option(help="Training recipe (TOML file).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to create.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted training.")
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder for the vision features; default: .features in the data set's."),
    ] = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train a checkpoint on a data set; --resume continues an interrupted training."""
    use_threads(threads)
    require_extra("train")
    with quiet_imports():
        from mod_edge.toy_scenes.motion_loss import motion_loss
        from mod_edge.training.recipe import read_recipe
        from mod_edge.training.resume_state import ResumeState
        from mod_edge.training.train import train as train_checkpoint
        from mod_edge.training.trainer import shown_loss

    recipe = read_recipe(config)
    try:
        with progress("train") as show:
            report = train_checkpoint(
                data,
                recipe,
                output,
                resume=resume,
                force=force,
                on_step=show,
                features=features,
                auxiliary_losses={"motion": motion_loss},
            )
    except KeyboardInterrupt as exc:
        if not ResumeState(output).folder.exists():
            raise
        raise KeyboardInterrupt(
            "interrupted; run the same command with --resume to continue"
        ) from exc
    if json:
        print_json(report.to_json())
        return
    out.print(
        f"wrote {printable(str(output))}: {si(report.num_parameters, 'parameters')}, "
        f"{si(report.num_trained, '')} of them trained in {report.steps} steps on "
        f"{report.num_clips} clips; LM loss {shown_loss(report.lm_loss)}, stream loss "
        f"{shown_loss(report.stream_loss)}; {report.time_s:.0f} s"
    )
    if report.num_short_clips:
        print_warning(
            f"{report.num_short_clips} of {report.num_clips} videos are shorter than their entries "
            "in train.jsonl; replies after the end of a video were not trained on"
        )
