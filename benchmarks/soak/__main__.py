"""`python -m benchmarks.soak`: a day of frames as fast as they go, watched for drift.

A network camera in a process of its own sends pictures faster than the model takes them. They go
the way of `mod-edge run --source http://... --events FILE`: the capture thread, the session, and
the views that show its events. Memory, times and counts are sampled into build/soak/ and judged;
the command fails with a sentence for every fault. `--page` writes the figures into docs/soak.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures import CLIP, ROOT, run_mod_edge, shipped_bundle, shipped_fingerprint
from benchmarks.soak.camera import CameraProcess, serve_video
from benchmarks.soak.judge import FRAMES_PER_HOUR, faults_of, figures_of
from benchmarks.soak.report import figures_table, write_page
from benchmarks.soak.samples import Sampler, read_samples
from mod_edge.commands.console import err, out, reports_errors
from mod_edge.commands.decoder_settings import use_ffmpeg_options
from mod_edge.commands.event_file import EventFile, EventFileView
from mod_edge.commands.stream_view import StreamView, show_stream
from mod_edge.errors import ModEdgeError
from mod_edge.native.onnx_session import set_num_threads
from mod_edge.runtime import Event, FrameEvent, Query, Session, Summary, open_session, open_source

WORK = ROOT / "build" / "soak"
QUERY = "Please narrate the video in real time."
DAY = 24 * FRAMES_PER_HOUR
CAMERA_FPS = 100.0  # more than the bundled model watches per second on one thread


class Leak(StreamView):
    """Keeps some bytes for every frame: a fault that the judge must find."""

    def __init__(self, session: Session, num_bytes: int) -> None:
        super().__init__(session)
        self._num_bytes = num_bytes
        self._leaked: list[bytearray] = []

    def show(self, event: Event) -> None:
        """Leak, at a frame."""
        if isinstance(event, FrameEvent):
            self._leaked.append(bytearray(self._num_bytes))

    def finish(self, summary: Summary) -> None:
        """Keep everything."""


class Pause(StreamView):
    """Has the camera pause once, at a frame: a fault that the judge must find."""

    def __init__(
        self, session: Session, camera: CameraProcess, *, at_frame: int, seconds: float
    ) -> None:
        super().__init__(session)
        self._camera, self._at_frame, self._seconds = camera, at_frame, seconds

    def show(self, event: Event) -> None:
        """Pause, at the frame."""
        if isinstance(event, FrameEvent) and event.index == self._at_frame:
            self._camera.pause(self._seconds)

    def finish(self, summary: Summary) -> None:
        """Nothing is left to do."""


def soak(
    bundle: Path,
    video: Path,
    folder: Path,
    *,
    num_frames: int,
    camera_fps: float,
    window: str,
    pause_s: float = 0.0,
    leak_bytes: int = 0,
) -> None:
    """Stream `num_frames` frames; writes `samples.jsonl` and `events.jsonl` into `folder`.

    Args:
        bundle: of the model.
        video: that the camera plays again and again.
        folder: of the files; those of an earlier soak are replaced.
        num_frames: to watch.
        camera_fps: pictures of the camera per second; what the model cannot watch is dropped.
        window: of the cache, short enough to roll.
        pause_s: the camera sends nothing for so long, once, in the middle: a fault.
        leak_bytes: kept for every frame: a fault.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples, events = folder / "samples.jsonl", folder / "events.jsonl"
    events.unlink(missing_ok=True)
    with (
        serve_video(video, fps=camera_fps) as camera,
        open_session(bundle, window=window) as session,
        open_source(camera.address, fps=camera_fps, max_frames=num_frames) as frames,
        EventFile(events) as file,
    ):
        views: list[StreamView] = [EventFileView(session, file)]
        if leak_bytes:
            views.append(Leak(session, leak_bytes))
        if pause_s:
            views.append(Pause(session, camera, at_frame=num_frames // 2, seconds=pause_s))
        views.append(Sampler(session, samples, events))
        show_stream(session, frames, [Query(QUERY)], views)


def shipped_bundle_and_scene() -> tuple[Path, Path]:
    """The bundled model, exported, and ten minutes of a scene; made once per checkpoint."""
    made = WORK / shipped_fingerprint()[:12]
    bundle, scenes = shipped_bundle(made), made / "scenes"
    if not scenes.is_dir():
        counts = ("--train", 0, "--validation", 0, "--test", 1, "--combinations", 0)
        look = ("--duration", 600, "--photographs", CLIP)
        run_mod_edge("scenes", scenes, *counts, *look)
    return bundle, scenes / "videos" / "test-000000.mp4"


@reports_errors
def main(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle for target cpu; default: the bundled model's.")
    ] = None,
    video: Annotated[Path, typer.Option(help="Video for a bundle of your own.")] = CLIP,
    frames: Annotated[int, typer.Option(min=1, help="Frames to watch; a day by default.")] = DAY,
    span: Annotated[
        int, typer.Option(min=1, help="Frames at either end that are compared; an hour by default.")
    ] = FRAMES_PER_HOUR,
    camera_fps: Annotated[
        float, typer.Option(help="Pictures of the camera per second.")
    ] = CAMERA_FPS,
    window: Annotated[str, typer.Option(help="Window of the cache.")] = "20s",
    folder: Annotated[Path, typer.Option(help="Folder of the samples and events.")] = WORK / "day",
    page: Annotated[
        Path | None, typer.Option(help="Page whose figures are written: docs/soak.md.")
    ] = None,
    leak_bytes: Annotated[int, typer.Option(hidden=True, help="A fault to be found.")] = 0,
    pause_s: Annotated[float, typer.Option(hidden=True, help="A fault to be found.")] = 0.0,
) -> None:
    """Watch a day of frames as fast as they go, and judge memory, times and counts."""
    set_num_threads(1)
    use_ffmpeg_options()
    if bundle is None:
        bundle, video = shipped_bundle_and_scene()
    soak(
        bundle,
        video,
        folder,
        num_frames=frames,
        camera_fps=camera_fps,
        window=window,
        pause_s=pause_s,
        leak_bytes=leak_bytes,
    )
    samples = read_samples(folder / "samples.jsonl")
    figures = figures_of(samples, span)
    out.print(figures_table(figures))
    _require_no(faults_of(samples, num_frames=frames, span_frames=span))
    if page is not None:
        write_page(page, figures)
        err.print(f"wrote {page}")


def _require_no(faults: Sequence[str]) -> None:
    if faults:
        raise ModEdgeError("the soak failed: " + "; ".join(faults))


if __name__ == "__main__":
    typer.run(main)
