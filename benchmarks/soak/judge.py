"""The judge of a soak: figures of its samples, and a sentence for everything that is wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.soak.samples import Sample
from mod_edge.errors import ModEdgeError

FRAMES_PER_HOUR = 7200  # at 2 frames/s


@dataclass(frozen=True)
class Limits:
    """What a stream that is left running may do.

    Attributes:
        bytes_per_frame: growth of memory; 100 are 17 MB a day at 2 frames/s.
        cpu_ratio: CPU time of a frame at the end, as a multiple of that at the beginning. Other
            work on the machine hardly changes CPU time.
        step_ratio: the median step at the end, likewise; other work on the machine changes it.
        gap_s: longest time between two frames; measured 2.6 on a machine ten times overloaded, and
            from 5 on the capture itself gives up.
        age_ms: oldest frame at the start of its step; a busy machine adds to it.
    """

    bytes_per_frame: float = 100.0
    cpu_ratio: float = 1.25
    step_ratio: float = 2.0
    gap_s: float = 3.0
    age_ms: float = 1000.0


LIMITS = Limits()


@dataclass(frozen=True)
class Span:
    """Frames at one end of a soak: wall times of a step, and CPU time of everything per frame."""

    p50_ms: float
    p99_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Figures:
    """What a soak measured.

    Attributes:
        first, last: its first and its last `span_frames` frames.
        bytes_per_frame: slope of the memory after the first span, by least squares.
        memory_bytes: at the end.
    """

    span_frames: int
    num_frames: int
    num_dropped: int
    num_rolls: int
    num_replies: int
    wall_s: float
    longest_gap_s: float
    bytes_per_frame: float
    memory_bytes: int
    first: Span
    last: Span


def figures_of(samples: Sequence[Sample], span_frames: int = FRAMES_PER_HOUR) -> Figures:
    """The figures of a soak.

    Args:
        samples: all of a soak.
        span_frames: frames at either end that are compared: an hour of a day.

    Raises:
        ModEdgeError: the soak is shorter than three spans.
    """
    num_frames = samples[-1].num_frames if samples else 0
    if num_frames < 3 * span_frames:
        raise ModEdgeError(
            f"the soak has {num_frames} frames, wanted at least {3 * span_frames}: its first and "
            f"last {span_frames} are compared, and its memory between them"
        )
    last = samples[-1]
    later = [each for each in samples if each.num_frames > span_frames]
    slope, _ = np.polyfit(
        [each.num_frames for each in later], [each.memory_bytes for each in later], deg=1
    )
    return Figures(
        span_frames=span_frames,
        num_frames=num_frames,
        num_dropped=last.num_dropped,
        num_rolls=last.num_rolls,
        num_replies=last.num_replies,
        wall_s=last.wall_s,
        longest_gap_s=max(each.longest_gap_s for each in samples),
        bytes_per_frame=float(slope),
        memory_bytes=last.memory_bytes,
        first=_span([each for each in samples if each.num_frames <= span_frames]),
        last=_span([each for each in samples if each.num_frames > num_frames - span_frames]),
    )


def faults_of(
    samples: Sequence[Sample],
    *,
    num_frames: int,
    span_frames: int = FRAMES_PER_HOUR,
    limits: Limits = LIMITS,
) -> list[str]:
    """A sentence for everything that is wrong with a soak; none for a good one.

    Args:
        samples: all of a soak of at least three spans.
        num_frames: that were to be watched.
        span_frames: see `figures_of`.
        limits: what is allowed.
    """
    figures = figures_of(samples, span_frames)
    return [
        *_count_faults(samples, num_frames),
        *_lateness_faults(samples, limits),
        *_growth_faults(figures, limits),
    ]


def _span(samples: Sequence[Sample]) -> Span:
    p50_ms, p99_ms = np.percentile([ms for each in samples for ms in each.step_ms], (50, 99))
    num_frames = samples[-1].num_frames - samples[0].num_frames
    cpu_s = samples[-1].cpu_s - samples[0].cpu_s
    return Span(float(p50_ms), float(p99_ms), 1000 * cpu_s / max(num_frames, 1))


def _count_faults(samples: Sequence[Sample], num_frames: int) -> Iterator[str]:
    """The first count that is wrong, and whether the soak is complete."""
    before = Sample(0, 0, 0, 0, 0, 0, 0, 0, 0, ())
    for earlier, sample in pairwise((before, *samples)):
        taken = sample.num_frames - earlier.num_frames
        if taken != len(sample.step_ms):
            yield (
                f"between frames {earlier.num_frames} and {sample.num_frames} there were "
                f"{len(sample.step_ms)} steps: frames were counted that nobody saw, or not counted"
            )
            break
        if sample.num_recorded != sample.num_frames:
            yield (
                f"after {sample.num_frames} frames the event file has {sample.num_recorded} in "
                "their order: events are missing, doubled or torn"
            )
            break
        if sample.num_dropped < earlier.num_dropped:
            yield (
                f"after {sample.num_frames} frames {sample.num_dropped} had been dropped, after "
                f"{earlier.num_frames} already {earlier.num_dropped}"
            )
            break
    fault = next(filter(None, map(_picture_fault, samples)), None)
    if fault is not None:
        yield fault
    if samples[-1].num_frames != num_frames:
        yield f"the stream ended after {samples[-1].num_frames} frames, wanted {num_frames}"
    if not samples[-1].num_rolls:
        yield "the cache never rolled: the window is too long for this many frames"


def _picture_fault(sample: Sample) -> str | None:
    """What is wrong with the counts of the camera's pictures."""
    if sample.num_captured is None or sample.num_taken is None or sample.num_discarded is None:
        return None
    if sample.num_captured != sample.num_taken + sample.num_discarded:
        return (
            f"after {sample.num_frames} frames {sample.num_captured} pictures were captured, but "
            f"{sample.num_taken} taken and {sample.num_discarded} discarded"
        )
    if sample.num_taken != sample.num_frames:
        return f"{sample.num_taken} pictures were taken for {sample.num_frames} frames"
    return None


def _lateness_faults(samples: Sequence[Sample], limits: Limits) -> Iterator[str]:
    worst = max(samples, key=lambda each: each.longest_gap_s)
    if worst.longest_gap_s > limits.gap_s:
        yield (
            f"no frame was watched for {worst.longest_gap_s:.1f} s among the "
            f"{len(worst.step_ms)} before frame {worst.num_frames} (allowed: {limits.gap_s:g} s)"
        )
    oldest = max(samples, key=lambda each: each.oldest_ms or 0.0)
    if oldest.oldest_ms is not None and oldest.oldest_ms > limits.age_ms:
        yield (
            f"a frame was {oldest.oldest_ms:.0f} ms old when its step began, among the "
            f"{len(oldest.step_ms)} before frame {oldest.num_frames} (allowed: "
            f"{limits.age_ms:g} ms)"
        )


def _growth_faults(figures: Figures, limits: Limits) -> Iterator[str]:
    if figures.bytes_per_frame > limits.bytes_per_frame:
        a_day = figures.bytes_per_frame * 24 * FRAMES_PER_HOUR
        yield (
            f"memory grows by {figures.bytes_per_frame:.0f} bytes per frame (allowed: "
            f"{limits.bytes_per_frame:g}), {a_day / 1e6:.0f} MB a day"
        )
    first, last = figures.first, figures.last
    if last.cpu_ms > limits.cpu_ratio * first.cpu_ms:
        yield (
            f"a frame takes {last.cpu_ms:.2f} ms of CPU time at the end and {first.cpu_ms:.2f} ms "
            f"at the beginning (allowed: {limits.cpu_ratio:g} times)"
        )
    if last.p50_ms > limits.step_ratio * first.p50_ms:
        yield (
            f"the median step takes {last.p50_ms:.2f} ms at the end and {first.p50_ms:.2f} ms at "
            f"the beginning (allowed: {limits.step_ratio:g} times)"
        )
