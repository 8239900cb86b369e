"""How `run` shows what happened to a live source."""

from dataclasses import replace

import pytest

from mod_edge.commands import stream_view
from mod_edge.commands.live_lines import age_status, live_rows
from mod_edge.runtime.capture.live_source import (
    FrozenEvent,
    GapEvent,
    LostEvent,
    SizeEvent,
    UnfrozenEvent,
)
from mod_edge.runtime.capture.source import CaptureCounts
from tests.commands.test_stream_view import EVIL, SUMMARY, shown

AGES = {"p50": 1.0, "p95": 20.25, "max": 33.3}
LIVE_SUMMARY = replace(
    SUMMARY,
    age_ms=AGES,
    latency_ms=AGES,
    capture=CaptureCounts(90, 3, 60, 4, 22, 0, 1, num_skipped_reads=2),
)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (LostEvent(1.0, "camera 0 ended"), "lost      camera 0 ended; opening it again"),
        (
            GapEvent(1.0, 9.25, 3, "it ended"),
            "gap       9.2 s without a picture, back after 3",
        ),
        (GapEvent(1.0, 2.0, 0, "a pause"), "gap       2.0 s without a picture: a pause"),
        (SizeEvent(1.0, 50, 30, 64, 48), "size      from 64 x 48 to 50 x 30 pixels"),
        (FrozenEvent(1.0, 5.5), "frozen    the picture has not changed for 5.5 s"),
        (UnfrozenEvent(1.0, 8.0), "unfrozen  the picture changes again, after 8.0 s"),
    ],
    ids=lambda value: value.kind if hasattr(value, "kind") else "",
)
def test_what_happens_to_a_source_is_one_line(event, says):
    assert stream_view._is_shown(event, is_verbose=False, stream="")
    assert shown(event).startswith(f"  0:01.0 {says}")


def test_a_reason_never_reaches_the_terminal_with_control_characters():
    assert shown(LostEvent(1.0, EVIL))[:-1].isprintable()


def test_the_summary_of_a_live_source_says_what_became_of_every_picture():
    assert live_rows(LIVE_SUMMARY) == [
        (
            "pictures",
            "90 captured = 3 taken + 87 discarded (60 between instants, 4 dropped, 22 while "
            "settling, 1 not read); 2 reads skipped",
        ),
        ("age", "1.0/20.2/33.3 ms when the step begins, p50/p95/max"),
        ("latency", "1.0/20.2/33.3 ms from capture to event, p50/p95/max"),
    ]
    assert age_status(LIVE_SUMMARY) == "  age 1/20 ms"


def test_a_file_has_no_such_rows():
    assert live_rows(SUMMARY) == []
    assert age_status(SUMMARY) == ""
