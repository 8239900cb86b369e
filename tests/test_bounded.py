"""What bounds other tests in time."""

import subprocess

import pytest

from tests import bounded


def test_a_process_that_prints_nothing_is_killed_and_reading_it_fails(monkeypatch):
    monkeypatch.setattr(bounded, "TIMEOUT_S", 0.1)
    with (
        bounded.BoundedProcess(["sleep", "60"], stdout=subprocess.PIPE) as process,
        pytest.raises(AssertionError, match=r"the process has ended, perhaps after 0\.1 s"),
    ):
        process.next_line()


def test_what_never_becomes_true_fails(monkeypatch):
    monkeypatch.setattr(bounded, "LONGEST_S", 0.01)
    with pytest.raises(AssertionError, match=r"still not true after 0\.01 s"):
        bounded.await_until(lambda: False)
