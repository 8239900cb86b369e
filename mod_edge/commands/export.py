"""`mod-edge export`."""

from pathlib import Path
from typing import Annotated

import typer

from mod_edge.bundle.manifest import Manifest
from mod_edge.commands.arguments import (
    DEFAULT_BUNDLE,
    ForceOption,
    JsonOption,
    ThreadsOption,
    require_extra,
    use_threads,
)
from mod_edge.commands.build import print_build
from mod_edge.commands.console import err, out, print_json, printable, progress, reports_errors, si


@reports_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Bundle folder to create.")
    ] = DEFAULT_BUNDLE,
    profile: Annotated[str, typer.Option(help="Device profile: name or TOML file.")] = "cpu",
    target: Annotated[
        str | None,
        typer.Option(help="Target, see mod-edge targets; default: the profile's first installed."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16; default: the profile's.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="as-dtype, int8 (activations in 8 bits too), int8-weight-only or int4, see "
            "mod-edge targets; default: int8 for target cpu from 100 million decoder weights on, "
            "else as-dtype."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Fixed window: seconds (120s) or tokens (4096), if the target has one; default: "
            "the profile's."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Export only these decoder layers, such as 0-1 or 0,5.")
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Also build the engines.")] = False,
    threads: ThreadsOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, each checked against PyTorch."""
    use_threads(threads)
    require_extra("export")
    from mod_edge.export.bundle_writer import export_bundle, parse_layers
    from mod_edge.export.lowering_choice import (
        choose_lowering,
        require_compiler,
        summary,
        weights_reason,
    )
    from mod_edge.model.checkpoint import Checkpoint
    from mod_edge.profiles import load_profile

    settings = load_profile(profile)
    opened = Checkpoint(checkpoint)
    lowering = choose_lowering(
        opened, settings, target=target, precision=precision, weights=weights, window=window
    )
    if build:
        require_compiler(lowering)
    err.print(printable(summary(lowering)))
    err.print(weights_reason(lowering, weights))
    with progress("export") as show:
        manifest = export_bundle(
            opened,
            output,
            lowering=lowering,
            layers=None if layers is None else parse_layers(layers),
            force=force,
            on_step=show,
        )
    report = None
    if build:
        from mod_edge.bundle.bundle import open_bundle
        from mod_edge.export.engines import build_engines

        with progress("build") as show:
            report = build_engines(open_bundle(output, hash_all=True), settings, on_step=show)
    if json:
        document = {
            "bundle": str(output),
            "lowering": lowering.to_json(),
            "size_bytes": manifest.size_bytes,
            "parity": {name: graph.parity for name, graph in manifest.graphs.items()},
        }
        print_json(document | ({"build": report.to_json()} if report else {}))
        return
    print_export(output, manifest)
    if report:
        print_build(report)


def print_export(folder: Path, manifest: Manifest) -> None:
    """Print what was written, its largest error and, if it is quantized, what that costs."""
    worst = max(manifest.graphs.values(), key=lambda graph: graph.parity["max_relative_error"])
    out.print(
        f"wrote {printable(str(folder))}: {len(manifest.graphs)} graphs, "
        f"{si(manifest.size_bytes, 'B')}; largest error against PyTorch "
        f"{worst.parity['max_relative_error']:.1e} ({worst.file}), allowed "
        f"{worst.parity['allowed']:.0e}"
    )
    quantized = [graph for graph in manifest.graphs.values() if "cost" in graph.parity]
    if quantized:
        costliest = max(quantized, key=lambda graph: graph.parity["cost"])
        out.print(
            f"weights {manifest.lowering.weight_format}: against the original weights the largest "
            f"error is {costliest.parity['cost']:.1e} ({costliest.file})"
        )
