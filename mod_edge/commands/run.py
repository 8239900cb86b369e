"""`mod-edge run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mod_edge.commands.arguments import (
    DEFAULT_BUNDLE,
    BundleArgument,
    DeviceOption,
    KvBudgetOption,
    OptionalProfileOption,
    ThreadsOption,
    WindowOption,
    refuse_options,
    usage_errors,
    use_threads,
)
from mod_edge.commands.console import reports_errors
from mod_edge.commands.decoder_settings import quiet_decoders, use_ffmpeg_options
from mod_edge.commands.live_options import (
    FrozenAfterOption,
    KeepOption,
    ReconnectOption,
    live_policy,
)
from mod_edge.errors import SourceError
from mod_edge.native.package_faults import quiet_imports

if TYPE_CHECKING:
    from mod_edge.runtime.queries import Query

VIDEO = "--source FILE or --camera NUMBER"
OF_VIDEO = (
    "image_fps",
    "max_frames",
    "threshold",
    "frames_per_step",
    "keep",
    "reconnect",
    "frozen_after",
    "stdin",
    "events",
)


@reports_errors
def run(
    context: typer.Context,
    bundle: BundleArgument = DEFAULT_BUNDLE,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Video file, folder or glob of images, stream URL, camera number or path, csi://0,"
            " GStreamer pipeline, or test://. Repeatable: several streams on one model."
        ),
    ] = None,
    camera: Annotated[
        list[int] | None,
        typer.Option(min=0, max=255, help="Camera number; short for --source NUMBER. Repeatable."),
    ] = None,
    image_fps: Annotated[
        float | None,
        typer.Option(help="Frames per second of images; default: each image is one frame."),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            help="Instruction or question. A number after the last @ is its time in seconds of "
            'video, 0 if there is none: "text@12.5". Repeatable. Without a video, each query is a '
            "turn of a conversation of text alone."
        ),
    ] = None,
    window: WindowOption = None,
    kv_budget: KvBudgetOption = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after N frames.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply, in tokens; default: the profile's.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Speak when P(silent) is below this threshold (0-1); default: the checkpoint's.",
        ),
    ] = None,
    frames_per_step: Annotated[
        int | None,
        typer.Option(min=1, help="Most frames per decoder step; default: the profile's."),
    ] = None,
    keep: KeepOption = None,
    reconnect: ReconnectOption = None,
    frozen_after: FrozenAfterOption = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sample replies at this temperature; 0 is greedy.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(
            help="Sample only from the most likely tokens whose probabilities add up to this value "
            "(0-1)."
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text at which a reply ends; not part of it. Repeatable."),
    ] = None,
    stdin: Annotated[
        bool,
        typer.Option(
            "--stdin",
            help="Read questions and other requests from standard input while the stream runs: one "
            "JSON object per line, or on a terminal what you type.",
        ),
    ] = False,
    profile: OptionalProfileOption = None,
    backend: Annotated[str, typer.Option(help="Backend: auto, tensorrt, onnx or torch.")] = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint the bundle was exported from, for --backend torch."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check all file hashes first.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print frames and evictions.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="With --json, print a line for each token too.")
    ] = False,
    events: Annotated[
        Path | None,
        typer.Option(help="Append what --json prints to this file too; SIGHUP reopens it."),
    ] = None,
) -> None:
    """Stream a video file or a camera through a bundle; Ctrl-C ends it with a summary.

    With --query alone, without a video, the model replies to text.
    """
    texts = [*(source or ()), *map(str, camera or ())]
    is_text = not texts
    if is_text:
        refuse_options(context, OF_VIDEO, VIDEO)
    if is_text and not query:
        raise typer.BadParameter(f"give {VIDEO}, or --query TEXT for a conversation of text alone")
    if not json:
        refuse_options(context, ("tokens",), "--json")
    use_threads(threads)
    use_ffmpeg_options()
    if not verbose:
        quiet_decoders()
    with quiet_imports():
        from mod_edge.commands.stream_view import ViewOptions
        from mod_edge.commands.streaming import CaptureOptions, ModelOptions, converse, stream
        from mod_edge.plan.sampling import Sampling
        from mod_edge.runtime.capture.source_name import parse_source

    queries = _queries(query or ())
    view = ViewOptions(as_json=json, is_verbose=verbose, has_tokens=tokens)
    with usage_errors():
        sampling = Sampling(temperature, top_p, seed)
    model = ModelOptions(
        bundle=bundle,
        hash_all=check,
        backend=backend,
        device=device,
        checkpoint=checkpoint,
        profile=profile,
        window=window,
        kv_budget_mib=kv_budget,
        threshold=threshold,
        max_new_tokens=max_new_tokens,
        frames_per_step=frames_per_step,
        sampling=sampling,
        stop=tuple(stop or ()),
    )
    if is_text:
        converse(model, _untimed(queries), view)
        return
    policy = live_policy(keep, reconnect, frozen_after)
    with usage_errors("--source", error=SourceError):
        sources = tuple(map(parse_source, texts))
    capture = CaptureOptions(sources, policy, max_frames, image_fps)
    stream(model, capture, queries, view, events=events, reads_stdin=stdin)


def _untimed(queries: Sequence["Query"]) -> list[str]:
    """The texts of queries without video, which has the clock for their times."""
    timed = [query for query in queries if query.time_s > 0]
    if timed:
        first = timed[0]
        raise typer.BadParameter(
            f"{first.text[:40]!r} is at {first.time_s:g} s of video, but there is no video: omit "
            f"its time, give {VIDEO}, or add @0 to keep it as text",
            param_hint="--query",
        )
    return [query.text for query in queries]


def _queries(texts: Sequence[str]) -> list["Query"]:
    from mod_edge.runtime.queries import parse_query

    with usage_errors("--query"):
        return [parse_query(text) for text in texts]
