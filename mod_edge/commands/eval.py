"""`mod-edge eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    ClipsOption,
    DataOption,
    DeviceOption,
    JsonOption,
    OptionalProfileOption,
    ThreadsOption,
    ToleranceOption,
    use_threads,
)
from mod_edge.commands.console import EXIT_ERROR, print_json, progress, reports_errors
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint or bundle folder.")],
    data: DataOption,
    split: Annotated[str, typer.Option(help="Split: a JSONL file of the data set.")] = "test",
    clips: ClipsOption = None,
    tolerance: ToleranceOption = 1.0,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Speak when P(silent) is below this threshold (0-1); default: the checkpoint's, "
            "and 0 for the teacher-forced metrics."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="For a bundle: auto, tensorrt or onnx.")] = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    profile: OptionalProfileOption = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also evaluate on black video and shuffled frames.")
    ] = False,
    least_f1: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with code 1 if F1 is below this value.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print each reply next to the expected one.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Evaluate when a model speaks and what it says, next to baselines that see no video."""
    use_threads(threads)
    with quiet_imports():
        from mod_edge.commands.evaluation_view import print_evaluation, print_shortfall
        from mod_edge.evaluation.evaluate import evaluate as evaluate_model

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
