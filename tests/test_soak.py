"""The short soak: memory must not grow with the stream; `soak.py` is the long one."""

import importlib.util
import sys
from pathlib import Path

import pytest

from mod_edge.runtime.open_session import open_session

SOAK = Path(__file__).parent / "soak.py"
NUM_FRAMES, WARM_UP, SPAN = 1500, 700, 300
# Measured here over 800 frames: 0 to 41 bytes a frame (a page or two in all), as over 20,000.
MAX_BYTES_PER_FRAME = 100
LEAK_BYTES = 1000  # what one forgotten kept-token array and its event cost a frame


def load_soak():
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_soak(tiny_bundle):
    soak = load_soak()

    def run(on_frame):
        with open_session(tiny_bundle, window="260", max_new_tokens=8) as session:
            return soak.soak(session, NUM_FRAMES, span=SPAN, warm_up=WARM_UP, on_frame=on_frame)

    return run


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")


@linux_only
def test_memory_does_not_grow_with_the_stream(run_soak):
    result = run_soak(lambda _event: None)
    assert result["num_rolls"] > 100
    assert result["bytes_per_frame"] < MAX_BYTES_PER_FRAME


@linux_only
def test_an_injected_leak_is_seen(run_soak):
    leaked = []
    result = run_soak(lambda event: leaked.append(bytearray(LEAK_BYTES)))
    assert result["bytes_per_frame"] > MAX_BYTES_PER_FRAME
