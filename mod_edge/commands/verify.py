"""`mod-edge verify`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    DEFAULT_BUNDLE,
    BundleArgument,
    ForceOption,
    JsonOption,
    ThreadsOption,
    require_extra,
    use_threads,
)
from mod_edge.commands.console import (
    EXIT_ERROR,
    out,
    print_json,
    printable,
    progress,
    reports_errors,
)
from mod_edge.native.package_faults import quiet_imports


@reports_errors
def verify(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint the bundle was exported from, run in PyTorch.")
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(help="Folder of golden files to compare with; needs no PyTorch."),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(help="Check only this graph, without the stream: vision, layer-07, ..."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Video file to record the reference on; default: a synthetic clip."),
    ] = None,
    save_golden: Annotated[
        Path | None,
        typer.Option(help="Folder to create with the recorded reference, in Polygraphy's format."),
    ] = None,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print every step and the kept tokens.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare every graph of a bundle, and a whole stream, with the PyTorch reference."""
    if (checkpoint is None) == (golden is None):
        raise typer.BadParameter("give one of --checkpoint CHECKPOINT and --golden FOLDER")
    if golden is not None and (source is not None or save_golden is not None):
        raise typer.BadParameter("--source and --save-golden need --checkpoint")
    use_threads(threads)
    if golden is None:
        require_extra("export")
    require_extra("verify")
    with quiet_imports():
        from mod_edge.commands.verification_view import print_failure, print_report
        from mod_edge.verification.verify import verify_bundle, verify_golden

    with progress("verify") as show:
        if golden is not None:
            report = verify_golden(bundle, golden, graph=graph, on_step=show)
        else:
            assert checkpoint is not None
            report = verify_bundle(
                bundle,
                checkpoint,
                graph=graph,
                source=source,
                golden=save_golden,
                force=force,
                on_step=show,
            )
    if json:
        print_json(report.to_json())
    else:
        print_report(report, is_verbose=verbose)
        if save_golden is not None:
            out.print(f"wrote {printable(str(save_golden))}")
    if not report.is_ok:
        used = f"--golden {golden}" if golden else f"--checkpoint {checkpoint}"
        print_failure(report, used)
        raise typer.Exit(EXIT_ERROR)
