"""What a live source offers beside its frames, and the events that it reports."""

from dataclasses import dataclass
from typing import Protocol, cast

from mod_edge.runtime.capture.clock import Clock
from mod_edge.runtime.capture.source import CaptureCounts, Frame, Source
from mod_edge.runtime.events import Event


@dataclass(frozen=True)
class LostEvent(Event):
    """The source stalled or ended; it is being opened again. `GapEvent` follows, or an error."""

    kind = "lost"
    reason: str


@dataclass(frozen=True)
class GapEvent(Event):
    """Pictures arrive again after a gap.

    Attributes:
        gap_s: seconds without a picture.
        num_attempts: to open the source again; 0 if it only paused.
        reason: why no picture came.
    """

    kind = "gap"
    gap_s: float
    num_attempts: int
    reason: str


@dataclass(frozen=True)
class SizeEvent(Event):
    """Pictures have another size than before, in pixels."""

    kind = "size"
    width: int
    height: int
    old_width: int
    old_height: int


@dataclass(frozen=True)
class FrozenEvent(Event):
    """A warning: all pictures of the last `frozen_s` seconds have identical bytes."""

    kind = "frozen"
    frozen_s: float


@dataclass(frozen=True)
class UnfrozenEvent(Event):
    """The picture changes again; it was identical for `frozen_s` seconds."""

    kind = "unfrozen"
    frozen_s: float


class LiveSource(Source, Protocol):
    """A source whose frames arrive in real time and may be late, lost or dropped.

    Attributes:
        clock: on which its frames were captured.
    """

    clock: Clock

    @property
    def num_waiting(self) -> int:
        """Frames that come without waiting."""
        ...

    @property
    def counts(self) -> CaptureCounts:
        """What became of every picture so far."""
        ...

    def wait(self) -> None:
        """Return once `is_ready`: the next frame, an event, the end or an error is there."""
        ...

    def take(self, most: int) -> list[Frame] | None:
        """The frames that come without waiting, at most `most`; None at the end.

        Raises:
            SourceError: the source failed.
        """
        ...

    def take_events(self) -> list[Event]:
        """What happened to the source since the last call."""
        ...

    def end(self) -> None:
        """End the iteration and the reading, from any thread; returns at once."""
        ...


def as_live(source: Source) -> LiveSource | None:
    """The source if it is live, else None."""
    return cast(LiveSource, source) if source.is_live else None


def next_frames(
    source: LiveSource, most: int, *, waits: bool = True
) -> tuple[list[Frame], list[Event]] | None:
    """The frames that wait, and what happened to the source before them; None at the end.

    Args:
        source: the source.
        most: frames to take.
        waits: whether to wait until there is either; otherwise there may be none of both, as when a
            frame became too old since `is_ready` was asked.

    Raises:
        SourceError: the source failed.
    """
    while True:
        if waits:
            source.wait()
        events = source.take_events()
        if events and not source.num_waiting:
            return [], events
        frames = source.take(most)
        if frames is None:
            return ([], events) if events else None
        if frames or events or not waits:
            return frames, events
