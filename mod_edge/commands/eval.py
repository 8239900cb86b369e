"""`mod-edge eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import DataOption, JsonOption, explained_imports
from mod_edge.commands.console import EXIT_ERROR, print_json, progress, reports_errors


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
