"""Why a worker process died, in words."""

import pytest

from mod_edge.native.worker_death import cause_of


@pytest.mark.parametrize(
    ("exit_code", "says"),
    [
        (-9, "SIGKILL, usually out of memory"),
        (-11, "SIGSEGV; run again"),
        (-40, "signal 40; run again"),  # a real-time signal has no name
        (3, "exit code 3; run again"),
        (None, "no exit code; run again"),
    ],
)
def test_an_exit_code_is_told_in_words(exit_code, says):
    assert cause_of(exit_code).startswith(says)
