"""A short soak test: memory must not grow with the stream; `soak.py` runs the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak.py"
# Measured: 29 to 33 bytes per frame (seven pages in all), 2 to 3 over 20,000 frames. Before frame
# 3,000 arenas may still grow: 320 to 410 from frame 2,000 on if both cores are idle.
MAX_BYTES_PER_FRAME = 100
LEAK_BYTES = 1000  # less than one step's kept positions and its event

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")


def bytes_per_frame(bundle, *options):
    """In its own process: memory that other tests freed would hide a small leak."""
    command = [sys.executable, str(SOAK), str(bundle), "--window", "260"]
    command += ["--frames", "4000", "--warm-up", "3000", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["num_rolls"] > 100
    return figures["bytes_per_frame"]


def test_memory_does_not_grow_with_the_stream(tiny_bundle):
    assert bytes_per_frame(tiny_bundle) < MAX_BYTES_PER_FRAME


@pytest.mark.slow  # as long as the test above
def test_an_injected_leak_is_detected(tiny_bundle):
    assert bytes_per_frame(tiny_bundle, "--leak-bytes", str(LEAK_BYTES)) > MAX_BYTES_PER_FRAME
