"""`mod-edge run`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.arguments import DEFAULT_BUNDLE, BundleArgument, explained_imports
from mod_edge.commands.console import reports_errors


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
        from mod_edge.bundle.bundle import open_bundle
        from mod_edge.commands.stream_view import screen_view, show_stream
        from mod_edge.runtime.capture.open_source import open_source
        from mod_edge.runtime.open_session import open_session
        from mod_edge.runtime.queries import parse_query

    queries = [parse_query(text) for text in query or ()]
    opened = open_bundle(bundle, hash_all=check)
    settings = opened.profile(profile)
    session = open_session(
        opened,
        backend=backend,
        device=device,
        checkpoint=checkpoint,
        profile=settings,
        window=window,
        kv_budget_mib=kv_budget,
        threshold=threshold,
        max_new_tokens=max_new_tokens,
        frames_per_step=frames_per_step,
    )
    fps, wanted = session.config.stream_config.frame_fps, settings.camera
    with (
        session,
        open_source(source, camera, fps=fps, max_frames=max_frames, wanted=wanted) as frames,
    ):
        view = screen_view(session, as_json=json, is_verbose=verbose)
        show_stream(session, frames, queries, [view])


def _quiet_decoders() -> None:
    """Keep what OpenCV and FFmpeg think of a damaged video off the screen; read at cv2's import."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
