"""The `mod-edge` command: parses, calls one library function, prints. How it ends: `EXIT_CODES`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mod_edge import cli_training
from mod_edge.cli_app import (
    DEFAULT_BUNDLE,
    EXIT_CODES,
    BundleArgument,
    ForceOption,
    JsonOption,
    app,
    explained_imports,
    require_export_extra,
    require_packages,
)
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
from mod_edge.errors import ConfigError

__all__ = ["app"]  # with all commands on it

VERIFY_PACKAGES = ("polygraphy", "onnxruntime")


@app.command(epilog=EXIT_CODES)
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
    from mod_edge.presets import init_checkpoint
    from mod_edge.shipped import CARD_FILE, NAME, copy_shipped

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


@app.command(epilog=EXIT_CODES)
@reports_errors
def inspect(
    target: Annotated[str, typer.Argument(help="Checkpoint, bundle or preset.")],
    frames: Annotated[
        int, typer.Option(min=1, help="Length of the stream costs are taken over.")
    ] = 600,
    json: JsonOption = False,
) -> None:
    """Show what a model is made of and what a frame costs, beside the full-computation model."""
    require_export_extra()
    from mod_edge.inspection import inspect as inspect_target
    from mod_edge.inspection_view import print_inspection

    inspection = inspect_target(target, frames)
    if json:
        print_json(inspection.to_json())
    else:
        print_inspection(inspection)


app.command(epilog=EXIT_CODES)(cli_training.scenes)
app.command(epilog=EXIT_CODES)(cli_training.train)
app.command("eval", epilog=EXIT_CODES)(cli_training.evaluate)


@app.command(epilog=EXIT_CODES)
@reports_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder.")] = DEFAULT_BUNDLE,
    profile: Annotated[
        str, typer.Option(help="Profile of the device it is for: name or TOML file.")
    ] = "cpu",
    target: Annotated[
        str | None, typer.Option(help="One of the profile's targets; see mod-edge targets.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16 instead of the profile's.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="Instead of the profile's, for graphs that have it in them: 120s, 4096."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Only these decoder layers, like 0-1 or 0,5.")
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Compile the engines here too.")] = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Cut a checkpoint into ONNX graphs, each held against PyTorch as it is written."""
    require_export_extra()
    from mod_edge.checkpoint import Checkpoint
    from mod_edge.export.bundle import export_bundle, parse_layers
    from mod_edge.export_plan import choose_lowering, require_compiler, summary
    from mod_edge.profiles import load_profile

    settings = load_profile(profile)
    opened = Checkpoint(checkpoint)
    lowering = choose_lowering(opened, settings, target=target, precision=precision, window=window)
    if build:
        require_compiler(lowering)
    err.print(printable(summary(lowering)))
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
        from mod_edge.build import build_bundle

        with progress("build") as show:
            report = build_bundle(output, settings, on_step=show)
    if json:
        document = {
            "bundle": str(output),
            "lowering": asdict(lowering),
            "parity": {name: graph.parity for name, graph in manifest.graphs.items()},
        }
        print_json(document | ({"build": report.to_json()} if report else {}))
        return
    worst = max(manifest.graphs.values(), key=lambda graph: graph.parity["max_relative_error"])
    size = sum(record.size_bytes for record in manifest.files.values())
    out.print(
        f"wrote {printable(str(output))}: {len(manifest.graphs)} graphs, {si(size, 'B')}; "
        f"largest error against PyTorch {worst.parity['max_relative_error']:.1e} ({worst.file}), "
        f"allowed {worst.parity['allowed']:.0e}"
    )
    if report:
        from mod_edge.build_view import print_build

        print_build(report)


@app.command(epilog=EXIT_CODES)
@reports_errors
def targets(json: JsonOption = False) -> None:
    """Show where graphs can run, in which precisions, and which of these are installed here."""
    from mod_edge.installed import describe_targets
    from mod_edge.targets_view import print_targets

    if json:
        print_json({"targets": describe_targets()})
    else:
        print_targets()


@app.command(epilog=EXIT_CODES)
@reports_errors
def build(
    profile: Annotated[str, typer.Option(help="Profile name or TOML file: shapes and device.")],
    bundle: BundleArgument = DEFAULT_BUNDLE,
    compute_capability: Annotated[
        str | None, typer.Option(help="Of the GPU to compile for, like 8.9; default: this one's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build the fresh ones again.")] = False,
    json: JsonOption = False,
) -> None:
    """Compile a bundle's graphs into TensorRT engines, those that are not fresh already."""
    from mod_edge.build import build_bundle
    from mod_edge.build_view import print_build
    from mod_edge.profiles import load_profile

    settings = load_profile(profile)
    with progress("build") as show:
        report = build_bundle(
            bundle, settings, compute_capability=compute_capability, force=force, on_step=show
        )
    if json:
        print_json(report.to_json())
    else:
        print_build(report)


@app.command(epilog=EXIT_CODES)
@reports_errors
def run(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    source: Annotated[
        str | None, typer.Option(help="Video file, stream address or GStreamer pipeline.")
    ] = None,
    camera: Annotated[int | None, typer.Option(min=0, help="Camera number.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help='Instruction or question; "text@12.5" asks at 12.5 s. Repeatable.'),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="What to remember: seconds (120s) or tokens (4096).")
    ] = None,
    kv_budget: Annotated[
        float | None, typer.Option(help="Instead: MiB for all keys and values.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(help="Stop after so many frames.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest reply.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Silent probabilities below it count as zero.")
    ] = None,
    frames_per_step: Annotated[
        int | None, typer.Option(help="Frames of a file fed in one decoder step.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Profile name or TOML file; else the one that its engines have, or cpu."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, tensorrt, onnx or torch.")] = "auto",
    device: Annotated[str, typer.Option(help="For onnx: auto, cpu or cuda.")] = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help="The bundle's checkpoint, for --backend torch.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Hash every file first.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every frame and roll.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Stream a video file or a camera through a bundle; Ctrl-C ends it with the summary."""
    if (source is None) == (camera is None):
        raise typer.BadParameter("give one of --source FILE and --camera NUMBER")
    if not verbose:
        _quiet_decoders()
    with explained_imports():
        from mod_edge.runtime.capture import open_source
        from mod_edge.runtime.open_session import open_session, profile_of_bundle
        from mod_edge.runtime.queries import parse_query
        from mod_edge.stream_view import show_stream

    queries = [parse_query(text) for text in query or ()]
    settings = profile_of_bundle(bundle, profile)
    session = open_session(
        bundle,
        backend=backend,
        device=device,
        checkpoint=checkpoint,
        profile=settings,
        window=window,
        kv_budget_mib=kv_budget,
        threshold=threshold,
        max_new_tokens=max_new_tokens,
        frames_per_step=frames_per_step,
        check_all=check,
    )
    fps, wanted = session.config.stream_config.frame_fps, settings.camera
    with (
        session,
        open_source(source, camera, fps=fps, max_frames=max_frames, wanted=wanted) as frames,
    ):
        show_stream(session, frames, queries, as_json=json, is_verbose=verbose)


@app.command(epilog=EXIT_CODES)
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
    from mod_edge.verify import verify_bundle, verify_golden
    from mod_edge.verify_view import print_failure, print_report

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


@app.command(epilog=EXIT_CODES)
@reports_errors
def doctor(json: JsonOption = False) -> None:
    """Show what this machine has, what is missing, and how to get it."""
    from mod_edge.doctor import diagnose
    from mod_edge.doctor_view import print_report

    report = diagnose()
    if json:
        print_json(report.to_dict())
    else:
        print_report(report)
    if not report.is_healthy:
        raise typer.Exit(EXIT_ERROR)


def _quiet_decoders() -> None:
    """Keep what OpenCV and FFmpeg think of a damaged video off the screen; read at cv2's import."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
