"""The samples of a soak: a line of JSON for every `FRAMES_PER_SAMPLE` frames, and their reader."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from mod_edge.bench.memory import memory_now
from mod_edge.commands.stream_view import StreamView
from mod_edge.errors import ModEdgeError
from mod_edge.runtime import Event, FrameEvent, Session, Summary

FRAMES_PER_SAMPLE = 60


@dataclass(frozen=True)
class Sample:
    """The state of a stream after some frames, and the steps since the sample before.

    Attributes:
        wall_s: since the stream began.
        cpu_s: CPU time of the process since then, all threads.
        num_frames: frames watched so far.
        num_dropped: frames of the camera dropped so far because the model was busy.
        num_rolls: rolls of the cache so far.
        num_replies: replies so far.
        num_recorded: frames that the event file has in their order, read back from it.
        memory_bytes: anonymous memory of the process.
        longest_gap_s: longest time between two frames since the sample before.
        step_ms: milliseconds of resizing, vision and decoder of every frame since then.
        oldest_ms: age of the oldest frame since then, at the start of its step.
        num_captured: pictures that the camera delivered so far.
        num_taken, num_discarded: of these, given to the session, and dropped for any reason.
    """

    wall_s: float
    cpu_s: float
    num_frames: int
    num_dropped: int
    num_rolls: int
    num_replies: int
    num_recorded: int
    memory_bytes: int
    longest_gap_s: float
    step_ms: tuple[float, ...]
    oldest_ms: float | None = None
    num_captured: int | None = None
    num_taken: int | None = None
    num_discarded: int | None = None


class Sampler(StreamView):
    """Writes a sample for every `FRAMES_PER_SAMPLE` frames; keeps none in memory.

    Show it events after the view of the event file.
    """

    def __init__(self, session: Session, samples: Path, events: Path) -> None:
        super().__init__(session)
        self._samples = samples
        self._recorded = RecordedFrames(events)
        self._file: TextIO | None = None
        self._started_s = self._shown_s = time.monotonic()
        self._started_cpu_s = time.process_time()
        self._longest_gap_s = 0.0
        self._step_ms: list[float] = []
        self._ages_ms: list[float] = []

    def __enter__(self) -> "Sampler":
        self._file = self._samples.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self._file is not None
        self._file.close()

    def show(self, event: Event) -> None:
        """Add a frame; other events are in the summary."""
        if not isinstance(event, FrameEvent):
            return
        now_s = time.monotonic()
        if event.index == 0:  # loading the source is no gap
            self._started_s = self._shown_s = now_s
        self._longest_gap_s = max(self._longest_gap_s, now_s - self._shown_s)
        self._shown_s = now_s
        self._step_ms.append(round(event.letterbox_ms + event.vision_ms + event.decoder_ms, 3))
        if event.age_ms is not None:
            self._ages_ms.append(event.age_ms)
        if len(self._step_ms) == FRAMES_PER_SAMPLE:
            self._write(self.session.summary())

    def finish(self, summary: Summary) -> None:
        """Write the last sample, of the frames that are left."""
        if self._step_ms:
            self._write(summary)

    def _write(self, summary: Summary) -> None:
        memory_bytes = memory_now().anonymous
        if memory_bytes is None:
            raise ModEdgeError("a soak needs Linux with /proc/self/smaps_rollup, for its memory")
        capture = summary.capture
        sample = Sample(
            wall_s=round(time.monotonic() - self._started_s, 3),
            cpu_s=round(time.process_time() - self._started_cpu_s, 3),
            num_frames=summary.num_frames,
            num_dropped=summary.num_dropped,
            num_rolls=summary.num_rolls,
            num_replies=summary.num_replies,
            num_recorded=self._recorded.count(),
            memory_bytes=memory_bytes,
            longest_gap_s=round(self._longest_gap_s, 3),
            step_ms=tuple(self._step_ms),
            oldest_ms=max(self._ages_ms, default=None),
            num_captured=capture and capture.num_captured,
            num_taken=capture and capture.num_taken,
            num_discarded=capture and capture.num_discarded,
        )
        assert self._file is not None
        self._file.write(json.dumps(asdict(sample)) + "\n")
        self._file.flush()
        self._longest_gap_s = 0.0
        self._step_ms.clear()
        self._ages_ms.clear()


class RecordedFrames:
    """Counts the frames in a growing event file, as long as each follows the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._num_frames = 0

    def count(self) -> int:
        """Frames in their order so far; stands still once one is missing or a line is torn."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        for line in data.splitlines(keepends=True):
            if b'"event": "frame"' in line and line.endswith(b"}\n"):
                self._num_frames += json.loads(line)["index"] == self._num_frames
        return self._num_frames


def read_samples(path: Path) -> Sequence[Sample]:
    """The samples of a soak, also of one that was killed."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        samples.append(Sample(**document | {"step_ms": tuple(document["step_ms"])}))
    return samples
