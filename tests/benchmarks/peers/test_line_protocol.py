"""A worker serves the line protocol, and the driver understands it."""

import sys
from pathlib import Path

import pytest

from benchmarks.figures import ROOT
from benchmarks.peers.worker import Worker, WorkerError, failure
from benchmarks.peers.workers.line_protocol import Steps, timed_steps

# Notes every call, prints as libraries do, and fails at a step of 13 tokens.
FAKE = """
import sys
from pathlib import Path
from benchmarks.peers.workers.line_protocol import Steps, serve

class Fake(Steps):
    def note(self, text):
        print("a library's line")
        with open(sys.argv[1], "a") as file:
            file.write(text + "\\n")

    def fill(self, past):
        self.note(f"fill {past}")

    def step(self, tokens):
        if tokens == 13:
            raise ValueError("no step of 13 tokens")
        self.note(f"step {tokens}")

    def cut(self):
        self.note("cut")

serve(Fake, ("numpy",))
"""


@pytest.fixture
def calls(tmp_path):
    return tmp_path / "calls.txt"


@pytest.fixture
def worker(tmp_path, calls):
    command = [sys.executable, "-c", FAKE, calls]
    with Worker(command, tmp_path / "log.txt", {}, ROOT) as started:
        yield started


class Noted(Steps):
    """Notes its calls."""

    def __init__(self):
        self.calls = []

    def fill(self, past):
        self.calls.append(past)

    def step(self, tokens):
        self.calls.append(tokens)

    def cut(self):
        self.calls.append("cut")


def test_the_first_step_is_not_timed_and_every_step_is_cut():
    steps = Noted()
    assert len(timed_steps(steps, 11, rounds=2)) == 2
    assert steps.calls == [11, "cut"] * 3


def test_a_worker_tells_its_versions_and_how_long_it_loaded(worker):
    assert worker.versions.keys() == {"numpy"}
    assert worker.load_s >= 0


def test_a_worker_fills_its_cache_once_for_each_past(worker, calls):
    assert len(worker.step_times_ms(5, 3, 1)) == 1
    assert len(worker.step_times_ms(5, 1, 2)) == 2
    assert worker.step_times_ms(7, 1, 0) == []
    noted = calls.read_text().replace("\ncut", "").splitlines()
    assert noted == ["fill 5", *["step 3"] * 2, *["step 1"] * 3, "fill 7", "step 1"]


def test_lines_that_a_library_prints_are_in_the_log(worker, tmp_path):
    worker.step_times_ms(5, 3, 1)
    assert failure(1, tmp_path / "log.txt") == "a library's line (log.txt)"


def test_a_worker_that_fails_says_why(worker):
    with pytest.raises(WorkerError, match="ValueError: no step of 13 tokens"):
        worker.step_times_ms(5, 13, 1)
    with pytest.raises(WorkerError, match="no step of 13 tokens"):
        worker.step_times_ms(5, 1, 1)


def test_a_worker_that_does_not_start_says_why(tmp_path):
    command = [sys.executable, "-c", "import a_package_that_is_missing"]
    with pytest.raises(WorkerError, match="No module named 'a_package_that_is_missing'"):
        Worker(command, tmp_path / "log.txt", {}, ROOT)


def test_a_worker_that_a_signal_ended_says_which(tmp_path):
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(WorkerError, match=r"^ended by SIGKILL \(log\.txt\)$"):
        Worker(command, tmp_path / "log.txt", {}, ROOT)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's procfs")
def test_memory_and_cpu_time_of_a_worker_are_its_process_s(worker):
    memory = worker.memory()
    assert memory.resident > memory.anonymous > 0
    assert worker.cpu_s() > 0
