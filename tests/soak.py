"""A soak test: a long stream, measured for memory that grows and steps that slow down.

    python tests/soak.py BUNDLE [--frames 20000] [--window 1024] [--warm-up 3000]

Prints one JSON object: growth of resident memory in bytes per frame after warm-up, and the median
step time (vision and decoder) of the first 1,000 frames after the window is full and of the last
1,000. The clip's frames are kept in memory and repeated, so that only the session is measured.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.events import FrameEvent
from mod_edge.runtime.open_session import open_session
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session

CLIP = Path(__file__).parent / "data" / "box.mp4"
SPAN = 1000  # frames at either end whose step times are compared
# Arenas, caches of step shapes and interned numbers grow until every shape has occurred once.
WARM_UP_FRAMES = 3000


class LoopedClip:
    """The clip repeated, as one file of `num_frames` frames."""

    is_live = False
    is_ready = True
    num_dropped = 0

    def __init__(self, num_frames: int, fps: float) -> None:
        self.warnings: list[str] = []
        self._num_frames, self._fps = num_frames, fps
        with VideoFile(CLIP, fps=fps) as video:
            self._images = [frame.image for frame in video]

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._num_frames):
            yield Frame(index, index / self._fps, self._images[index % len(self._images)])


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(
    session: Session,
    num_frames: int,
    *,
    warm_up: int,
    on_frame: Callable[[FrameEvent], None],
) -> dict[str, float]:
    """Stream `num_frames` frames and return the figures to print."""
    if num_frames < warm_up + SPAN:
        raise ValueError(f"num_frames={num_frames}, wanted at least {warm_up + SPAN}")
    source = LoopedClip(num_frames, session.config.stream_config.frame_fps)
    first: list[float] = []
    last: list[float] = []
    start_bytes = end_bytes = 0
    for event in session.stream(source, [Query("Please narrate the video in real time.")]):
        if not isinstance(event, FrameEvent):
            continue
        on_frame(event)
        if event.index == warm_up:
            assert session.window.num_evicted, "the window must be full before the warm-up ends"
            start_bytes = resident_bytes()
        if session.window.num_evicted and len(first) < SPAN:
            first.append(event.vision_ms + event.decoder_ms)
        if event.index >= num_frames - SPAN:
            last.append(event.vision_ms + event.decoder_ms)
        if event.index == num_frames - 1:
            end_bytes = resident_bytes()  # before the summary, whose percentiles take a MiB
    summary = session.summary()
    return {
        "num_frames": summary.num_frames,
        "num_rolls": summary.num_rolls,
        "num_tokens": summary.num_tokens,
        "bytes_per_frame": (end_bytes - start_bytes) / (num_frames - warm_up),
        "resident_mib": end_bytes / 2**20,
        "first_step_ms": median(first),
        "last_step_ms": median(last),
        "last_to_first": median(last) / median(first),
        "wall_s": summary.wall_s,
    }


def main() -> None:
    """Run the soak from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=20000)
    parser.add_argument("--window", default="1024")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_FRAMES)
    parser.add_argument(
        "--leak-bytes", type=int, help="leak this much per frame, to test the soak itself"
    )
    arguments = parser.parse_args()
    leaked: list[bytearray] = []

    def on_frame(_event: FrameEvent) -> None:
        if arguments.leak_bytes:
            leaked.append(bytearray(arguments.leak_bytes))

    with open_session(arguments.bundle, window=arguments.window, max_new_tokens=16) as session:
        figures = soak(session, arguments.frames, warm_up=arguments.warm_up, on_frame=on_frame)
    json.dump(figures, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
