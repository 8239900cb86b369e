"""The commands around training, for `cli` to list: data in, a checkpoint out, and its measure."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.cli_app import ForceOption, JsonOption, explained_imports, require_packages
from mod_edge.console import (
    EXIT_ERROR,
    err,
    out,
    print_json,
    printable,
    progress,
    reports_errors,
    si,
)

TRAIN_PACKAGES = ("torch", "safetensors", "matplotlib")

DataOption = Annotated[Path, typer.Option(help="Data set: JSONL files and their videos.")]


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
        from mod_edge.training.scenes import write_scenes

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


@reports_errors
def train(
    data: DataOption,
    config: Annotated[Path, typer.Option(help="Recipe: TOML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to make.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was stopped.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train a checkpoint on a data set; Ctrl-C keeps what was done, for --resume."""
    require_packages(TRAIN_PACKAGES, "on the machine where checkpoints are trained", "train")
    with explained_imports():
        from mod_edge.training.recipe import read_recipe
        from mod_edge.training.train import train as train_checkpoint
        from mod_edge.training.trainer import shown_loss
        from mod_edge.training.unfinished import Unfinished

    recipe = read_recipe(config)
    try:
        with progress("train") as show:
            report = train_checkpoint(
                data, recipe, output, resume=resume, force=force, on_step=show
            )
    except KeyboardInterrupt as exc:
        if not Unfinished(output).folder.exists():
            raise
        raise KeyboardInterrupt("stopped; the same command with --resume goes on") from exc
    if json:
        print_json(report.to_json())
        return
    out.print(
        f"wrote {printable(str(output))}: {si(report.num_parameters, 'parameters')}, "
        f"{si(report.num_trained, '')} of them trained in {report.steps} steps on "
        f"{report.num_clips} clips; loss {shown_loss(report.lm_loss)} of replies, "
        f"{shown_loss(report.stream_loss)} of decisions; {report.time_s:.0f} s"
    )
    if report.num_short_clips:
        err.print("warning:", style="yellow", end=" ")
        err.print(
            f"{report.num_short_clips} of {report.num_clips} videos end sooner than their lines in "
            "train.jsonl say; what is said after that was not learned"
        )


@reports_errors
def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint or bundle folder.")],
    data: DataOption,
    split: Annotated[str, typer.Option(help="Which JSONL file of the data set.")] = "test",
    clips: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Seconds by which a reply may be early or late.")
    ] = 1.0,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Silent probabilities below it count as zero; else the checkpoint's, and 0 where "
            "the true words are given."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="Of a bundle: auto, tensorrt or onnx.")] = "auto",
    device: Annotated[str, typer.Option(help="For onnx: auto, cpu or cuda.")] = "auto",
    profile: Annotated[
        str | None,
        typer.Option(help="Of a bundle: name or TOML file; else the one that its engines have."),
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also on black video and on shuffled frames.")
    ] = False,
    least_f1: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 if its F1 is lower.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what it said, beside what was due.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure when a model speaks and what it says, beside baselines that see nothing."""
    with explained_imports():
        from mod_edge.evaluate import evaluate as evaluate_model
        from mod_edge.evaluate_view import print_evaluation, print_shortfall

    with progress("eval") as show:
        evaluation = evaluate_model(
            model,
            data,
            split=split,
            max_clips=clips,
            tolerance_s=tolerance,
            threshold=threshold,
            backend=backend,
            device=device,
            profile=profile,
            controls=controls,
            on_step=show,
        )
    if json:
        print_json(evaluation.to_json())
    else:
        print_evaluation(evaluation, is_verbose=verbose)
    if least_f1 is not None and (evaluation.rows[0].free_running.f1 or 0.0) < least_f1:
        print_shortfall(evaluation, least_f1)
        raise typer.Exit(EXIT_ERROR)
