"""The judge of a soak, on samples of a real one and on the same samples with one fault."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.soak.judge import LIMITS, Limits, faults_of, figures_of
from benchmarks.soak.samples import FRAMES_PER_SAMPLE, Sample, read_samples
from mod_edge.errors import ModEdgeError

RECORDED = read_samples(Path(__file__).parent.parent.parent / "data" / "soak-samples.jsonl")
NUM_FRAMES = RECORDED[-1].num_frames
SPAN = NUM_FRAMES // 3 - FRAMES_PER_SAMPLE
# The recorded soak is short, and other work ran beside it.
LENIENT = Limits(bytes_per_frame=400)


def faults(samples, num_frames=NUM_FRAMES, limits=LENIENT):
    return faults_of(samples, num_frames=num_frames, span_frames=SPAN, limits=limits)


def changed_from(frame, change):
    """The recorded samples, changed from one frame on."""
    return [change(each) if each.num_frames > frame else each for each in RECORDED]


def test_a_recorded_soak_is_good():
    assert faults(RECORDED) == []


def test_a_leak_is_found_with_its_size():
    leak = 1000
    before, after = (
        figures_of(samples, SPAN).bytes_per_frame
        for samples in (
            RECORDED,
            changed_from(
                0,
                lambda each: replace(each, memory_bytes=each.memory_bytes + leak * each.num_frames),
            ),
        )
    )
    assert after - before == pytest.approx(leak)
    leaking = changed_from(
        0, lambda each: replace(each, memory_bytes=each.memory_bytes + leak * each.num_frames)
    )
    (fault,) = faults(leaking)
    assert fault == (
        f"memory grows by {after:.0f} bytes per frame (allowed: 400), "
        f"{after * 172_800 / 1e6:.0f} MB a day"
    )


def test_memory_that_grows_only_in_the_first_span_is_no_leak():
    grown = changed_from(SPAN, lambda each: replace(each, memory_bytes=each.memory_bytes + 10**8))
    assert faults(grown) == []


def test_frames_that_cost_more_cpu_time_are_found():
    start_s = RECORDED[2 * len(RECORDED) // 3].cpu_s
    slower = changed_from(
        2 * NUM_FRAMES / 3,
        lambda each: replace(each, cpu_s=start_s + 2 * (each.cpu_s - start_s)),
    )
    (fault,) = faults(slower)
    assert "ms of CPU time at the end" in fault
    assert fault.endswith("(allowed: 1.25 times)")


def test_steps_that_take_longer_without_more_cpu_time_are_found():
    slower = changed_from(
        2 * NUM_FRAMES / 3,
        lambda each: replace(each, step_ms=tuple(3 * step_ms for step_ms in each.step_ms)),
    )
    (fault,) = faults(slower)
    assert fault.startswith("the median step takes")


def test_a_stall_is_found_with_its_place():
    stalled = RECORDED[7]
    samples = [replace(each, longest_gap_s=12.34) if each is stalled else each for each in RECORDED]
    assert faults(samples) == [
        f"no frame was watched for 12.3 s among the {FRAMES_PER_SAMPLE} before frame "
        f"{stalled.num_frames} (allowed: 3 s)"
    ]


def test_an_old_frame_is_found_with_its_place():
    late = RECORDED[9]
    samples = [replace(each, oldest_ms=1234.5 if each is late else 20.0) for each in RECORDED]
    assert faults(samples) == [
        f"a frame was 1234 ms old when its step began, among the {FRAMES_PER_SAMPLE} before frame "
        f"{late.num_frames} (allowed: 1000 ms)"
    ]


def counted(sample, *, lost=0, spare=0):
    """The sample with counts of pictures, `lost` of them in none of the others."""
    taken = sample.num_frames + spare
    return replace(
        sample,
        num_captured=taken + sample.num_dropped + lost,
        num_taken=taken,
        num_discarded=sample.num_dropped,
    )


def test_every_picture_is_taken_or_dropped():
    assert faults([counted(each) for each in RECORDED]) == []
    (fault,) = faults([counted(each, lost=each.num_frames > 3000) for each in RECORDED])
    assert "pictures were captured, but 3060 taken and" in fault
    (fault,) = faults([counted(each, spare=each.num_frames > 3000) for each in RECORDED])
    assert fault == "3061 pictures were taken for 3060 frames"


def test_a_gap_in_the_counts_is_found():
    (fault,) = faults([each for each in RECORDED if each is not RECORDED[5]])
    first, last = RECORDED[4].num_frames, RECORDED[6].num_frames
    assert fault.startswith(f"between frames {first} and {last} there were {FRAMES_PER_SAMPLE} ")


def test_an_event_that_is_missing_in_the_file_is_found():
    missing = changed_from(
        NUM_FRAMES / 2, lambda each: replace(each, num_recorded=each.num_recorded - 1)
    )
    (fault,) = faults(missing)
    assert "events are missing, doubled or torn" in fault


def test_drops_that_are_uncounted_later_are_found():
    samples = changed_from(NUM_FRAMES / 2, lambda each: replace(each, num_dropped=0))
    (fault,) = faults(samples)
    assert " 0 had been dropped, after " in fault


def test_a_stream_that_ends_early_is_found():
    (fault,) = faults(RECORDED, num_frames=NUM_FRAMES + 1)
    assert fault == f"the stream ended after {NUM_FRAMES} frames, wanted {NUM_FRAMES + 1}"


def test_a_cache_that_never_rolls_is_found():
    (fault,) = faults(changed_from(0, lambda each: replace(each, num_rolls=0)))
    assert fault.startswith("the cache never rolled")


def test_a_soak_that_is_too_short_is_not_judged():
    for samples in ([], RECORDED[: len(RECORDED) // 2]):
        with pytest.raises(ModEdgeError, match=r"wanted at least .*its first and last"):
            faults(samples)


def test_figures_are_those_of_a_plain_calculation():
    def sample(number):
        return Sample(
            wall_s=2.0 * number,
            cpu_s=0.5 * number,
            num_frames=10 * number,
            num_dropped=3 * number,
            num_rolls=number,
            num_replies=2 * number,
            num_recorded=10 * number,
            memory_bytes=10**6 + 70 * number,
            longest_gap_s=0.25 * number,
            step_ms=tuple(number + 0.01 * frame for frame in range(10)),
        )

    figures = figures_of([sample(number) for number in range(1, 10)], span_frames=30)
    assert figures.bytes_per_frame == pytest.approx(7.0)
    assert (figures.num_frames, figures.num_dropped, figures.longest_gap_s) == (90, 27, 2.25)
    assert figures.first.p50_ms == pytest.approx(2.045)  # of frames 1 to 30: 1.00 to 3.09
    assert figures.last.p50_ms == pytest.approx(8.045)
    assert figures.first.cpu_ms == figures.last.cpu_ms == pytest.approx(50.0)


def test_the_days_limits_are_finite():
    assert all(math.isfinite(limit) and limit > 0 for limit in vars(LIMITS).values())
    assert all(a.num_frames < b.num_frames for a, b in pairwise(RECORDED))
