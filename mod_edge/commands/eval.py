"""`mod-edge eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    ClipsOption,
    DeviceOption,
    JsonOption,
    OptionalProfileOption,
    ThreadsOption,
    ToleranceOption,
    refuse_options,
    use_threads,
)
from mod_edge.commands.console import EXIT_ERROR, print_json, progress, reports_errors
from mod_edge.native.package_faults import quiet_imports

OF_DATA = ("split", "clips", "tolerance", "threshold", "controls", "least_f1", "verbose")
OF_TEXT = ("window_tokens",)


@reports_errors
def evaluate(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Checkpoint or bundle folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Data set folder: JSONL files and their videos.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text file: measure its perplexity, without video.")
    ] = None,
    window_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens per window of the text.")
    ] = 1024,
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
    """Evaluate when a model speaks and what it says, or measure the perplexity of a text.

    On a data set, the results stand next to baselines that see no video.
    """
    if (data is None) == (text is None):
        raise typer.BadParameter("give one of --data DATA and --text FILE")
    if text is not None:
        refuse_options(context, OF_DATA, "--data DATA")
        use_threads(threads)
        _evaluate_text(
            model,
            text,
            window_tokens=window_tokens,
            backend=backend,
            device=device,
            profile=profile,
            as_json=json,
        )
        return
    assert data is not None, "one of the two is given"
    refuse_options(context, OF_TEXT, "--text FILE")
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


def _evaluate_text(
    model: Path,
    text: Path,
    *,
    window_tokens: int,
    backend: str,
    device: str,
    profile: str | None,
    as_json: bool,
) -> None:
    with quiet_imports():
        from mod_edge.commands.evaluation_view import print_text_evaluation
        from mod_edge.evaluation.text_perplexity import evaluate_text

    with progress("eval") as show:
        evaluation = evaluate_text(
            model,
            text,
            window_tokens=window_tokens,
            backend=backend,
            device=device,
            profile=profile,
            on_step=show,
        )
    if as_json:
        print_json(evaluation.to_json())
    else:
        print_text_evaluation(evaluation)
