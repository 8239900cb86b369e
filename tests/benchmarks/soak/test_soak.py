"""The soak itself, short and in a process of its own; `python -m benchmarks.soak` runs a day."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.figures import ROOT
from benchmarks.soak.judge import Limits, faults_of
from benchmarks.soak.samples import RecordedFrames, read_samples

NUM_FRAMES, SPAN = 1200, 360
# Measured: 250 to 400 bytes per frame, because arenas and caches of step shapes grow until frame
# 3,000. No time is judged: other work may run on this machine.
LIMITS = Limits(
    bytes_per_frame=1500, cpu_ratio=math.inf, step_ratio=math.inf, gap_s=math.inf, age_ms=math.inf
)
LEAK_BYTES = 5000
PAUSE_S = 4.0  # the capture gives up after 5 s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup")


def soak(bundle, folder, *options):
    """The finished process of a soak."""
    sizes = ("--frames", NUM_FRAMES, "--span", SPAN, "--window", "260", "--camera-fps", 200)
    command = [sys.executable, "-m", "benchmarks.soak", bundle, "--folder", folder, *sizes]
    return subprocess.run(
        list(map(str, [*command, *options])),
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.live
def test_a_short_soak_keeps_its_memory_and_loses_no_event(tiny_bundle, tmp_path):
    done = soak(tiny_bundle, tmp_path)
    samples = read_samples(tmp_path / "samples.jsonl")
    assert faults_of(samples, num_frames=NUM_FRAMES, span_frames=SPAN, limits=LIMITS) == []
    assert samples[-1].num_dropped > 0  # the camera was faster, so this was a live stream
    assert f"| frames watched | {NUM_FRAMES:,} " in done.stdout
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "summary"
    assert events[-1]["num_frames"] == NUM_FRAMES


@pytest.mark.slow
def test_an_injected_leak_fails_the_soak(tiny_bundle, tmp_path):
    done = soak(tiny_bundle, tmp_path, "--leak-bytes", LEAK_BYTES)
    assert done.returncode == 1
    assert "error: the soak failed: " in done.stderr
    assert "memory grows by" in done.stderr
    samples = read_samples(tmp_path / "samples.jsonl")
    (fault,) = faults_of(samples, num_frames=NUM_FRAMES, span_frames=SPAN, limits=LIMITS)
    assert fault.startswith("memory grows by")


@pytest.mark.slow
def test_an_injected_stall_fails_the_soak(tiny_bundle, tmp_path):
    done = soak(tiny_bundle, tmp_path, "--pause-s", PAUSE_S)
    assert done.returncode == 1
    assert "no frame was watched for " in done.stderr
    samples = read_samples(tmp_path / "samples.jsonl")
    limits = replace(LIMITS, gap_s=Limits().gap_s)
    (fault,) = faults_of(samples, num_frames=NUM_FRAMES, span_frames=SPAN, limits=limits)
    assert fault.startswith("no frame was watched for ")


def test_recorded_frames_are_counted_up_to_the_first_that_is_missing_or_torn(tmp_path):
    path = tmp_path / "events.jsonl"
    recorded = RecordedFrames(path)

    def written(*indices, more=""):
        with path.open("a") as file:
            file.writelines(f'{{"event": "frame", "index": {index}}}\n' for index in indices)
            file.write(more)
        return recorded.count()

    assert written(0, 1, more='{"event": "reply"}\n') == 2
    assert written() == 2
    assert written(2, more='{"event": "frame", "ind') == 3
    assert written(4) == 3
    assert written(5) == 3
