"""`mod-edge verify`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import (
    DEFAULT_BUNDLE,
    BundleArgument,
    ForceOption,
    JsonOption,
    require_export_extra,
    require_packages,
)
from mod_edge.commands.console import (
    EXIT_ERROR,
    out,
    print_json,
    printable,
    progress,
    reports_errors,
)

VERIFY_PACKAGES = ("polygraphy", "onnxruntime")


@reports_errors
def verify(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The bundle's checkpoint: PyTorch judges.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Golden files judge instead, where there is no PyTorch.")
    ] = None,
    graph: Annotated[
        str | None, typer.Option(help="Only this graph, without the stream: vision, layer-07, ...")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Video file to record from; one is drawn otherwise.")
    ] = None,
    save_golden: Annotated[
        Path | None, typer.Option(help="Folder to make: what was recorded, in Polygraphy's format.")
    ] = None,
    force: ForceOption = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show every step, and which tokens were kept.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Hold every graph of a bundle, and the whole stream, against the PyTorch reference."""
    if (checkpoint is None) == (golden is None):
        raise typer.BadParameter("give one of --checkpoint CHECKPOINT and --golden FOLDER")
    if golden is not None and (source is not None or save_golden is not None):
        raise typer.BadParameter("--source and --save-golden go with --checkpoint")
    if golden is None:
        require_export_extra()
    require_packages(VERIFY_PACKAGES, "install them", "verify")
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
