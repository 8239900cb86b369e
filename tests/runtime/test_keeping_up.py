"""A model slower than its camera, on a clock that the test moves: ages, counts, skipped frames."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.capture.frame_queue import FrameQueue
from mod_edge.runtime.capture.live_source import GapEvent, LostEvent
from mod_edge.runtime.capture.source import NEWEST, Keep
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import FrameEvent, QueryEvent, ReplyEvent
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from tests.plan.test_protocol import (
    CONFIG,
    EOS,
    SILENT,
    TOKENIZER,
    WORD,
    Pictures,
    ScriptedStream,
)
from tests.runtime.capture.scripted_camera import FakeClock

FPS = CONFIG.stream_config.frame_fps
CAMERA_FPS = 30
IMAGE = np.zeros((40, 80, 3), np.uint8)


class SteadyCamera:
    """A picture every 1/30 s of a clock, kept by the queue of a live source.

    Attributes:
        happens: events by the number of the picture before which they are reported.
    """

    is_live = True
    warnings = ()

    def __init__(self, keep, num_frames, happens=None):
        self.clock = FakeClock()
        self.happens = happens or {}
        self._queue = FrameQueue(keep, fps=FPS, settle_s=0.25)
        self._num_frames = num_frames
        self._num_sent = 0
        self._events = []

    @property
    def counts(self):
        return self._queue.counts(0)

    @property
    def num_dropped(self):
        return self.counts.num_dropped

    @property
    def num_waiting(self):
        self._deliver()
        is_over = self._queue.num_taken == self._num_frames
        return 0 if is_over else self._queue.num_waiting

    @property
    def is_ready(self):
        self._deliver()
        is_over = self._queue.num_taken == self._num_frames
        return is_over or bool(self._events) or self._queue.is_ready(self.clock.now_s())

    def wait(self):
        while not self.is_ready:
            self.clock.passed_s = max(self.clock.passed_s, self._num_sent / CAMERA_FPS)

    def end(self):
        self._num_frames = self._queue.num_taken

    def take(self, most):
        self._deliver()
        left = self._num_frames - self._queue.num_taken
        frames = []
        while len(frames) < min(most, left) and (frame := self._queue.take(self.clock.now_s())):
            frames.append(frame)
        return frames if left else None

    def take_events(self):
        events, self._events = self._events, []
        return events

    def __iter__(self):
        while self._queue.num_taken < self._num_frames:
            self.wait()
            yield self._queue.take(self.clock.now_s())

    def _deliver(self):
        """The pictures until now."""
        while self._num_sent / CAMERA_FPS <= self.clock.passed_s:
            now_s, at = self.clock.now_s(), self.clock.utc()
            behind_s = self.clock.passed_s - self._num_sent / CAMERA_FPS
            if self._num_sent in self.happens:
                self._events.append(self.happens[self._num_sent])
            if self._queue.offer(now_s - behind_s):
                self._queue.put(IMAGE, at)
            self._num_sent += 1


def session_of(camera, *, step_s, num_frames, replies=(), frames_per_step=1):
    """A session of which every step takes `step_s` of the camera's clock."""

    class SlowStream(ScriptedStream):
        def step(self, *arguments, **options):
            camera.clock.passed_s += step_s
            super().step(*arguments, **options)

    stream = SlowStream([SILENT] * 4 * num_frames, list(replies))
    options = SessionOptions(0.725, 4, frames_per_step, 256, 0.125)
    rows = Rows(10**6, 10**6)
    return Session(stream, CONFIG, TOKENIZER, KvPlan(rows, 0, 0.0, 0.0), options)


def frames_in(events):
    return [event for event in events if isinstance(event, FrameEvent)]


def test_with_a_model_three_times_slower_than_the_frames_no_frame_is_older_than_stated():
    """The bound of newest: one interval of the camera when the step begins."""
    step_s = 3 / FPS
    camera = SteadyCamera(NEWEST, num_frames=1000)
    session = session_of(camera, step_s=step_s, num_frames=1000)
    frames = frames_in(session.stream(camera))
    assert len(frames) == 1000
    bound_ms = 1000 / CAMERA_FPS
    assert max(frame.age_ms for frame in frames) <= bound_ms + 0.001
    assert max(frame.latency_ms for frame in frames) <= bound_ms + 1000 * step_s + 0.001
    summary = session.summary()
    counts = summary.capture
    assert counts.num_captured > 1000 * 3 * CAMERA_FPS / FPS * 0.99
    assert counts.num_taken == 1000
    assert counts.num_taken + counts.num_discarded == counts.num_captured
    assert summary.num_dropped == counts.num_dropped >= 2 * 1000 - 3
    assert summary.age_ms["max"] == pytest.approx(max(frame.age_ms for frame in frames), abs=0.01)
    assert summary.latency_ms["p50"] >= 1000 * step_s


def test_a_queue_is_fed_as_one_step_of_many_frames_and_bounds_their_age():
    """Steps of up to 4 frames, each as slow as three frame times: the model keeps up."""
    camera = SteadyCamera(Keep("queue", 8), num_frames=400)
    session = session_of(camera, step_s=3 / FPS, num_frames=400, frames_per_step=4)
    frames = frames_in(session.stream(camera))
    assert len(frames) == 400
    instants = [round(frame.time_s * FPS) for frame in frames]
    assert instants == list(range(400))  # none was skipped
    assert max(frame.age_ms for frame in frames) <= 1000 * (8 / FPS + 1 / CAMERA_FPS)
    assert session.summary().num_dropped == 0
    counts = camera.counts
    assert counts.num_taken + counts.num_discarded == counts.num_captured


def test_a_queue_that_overflows_drops_its_oldest_frames_and_counts_them():
    camera = SteadyCamera(Keep("queue", 2), num_frames=100)
    session = session_of(camera, step_s=3 / FPS, num_frames=100)
    frames = frames_in(session.stream(camera))
    assert max(frame.age_ms for frame in frames) <= 1000 * (2 / FPS + 1 / CAMERA_FPS)
    assert 150 < frames[-1].num_dropped <= camera.counts.num_dropped


def test_a_model_in_time_drops_nothing_but_what_lies_between_two_instants():
    camera = SteadyCamera(NEWEST, num_frames=50)
    session = session_of(camera, step_s=0.2 / FPS, num_frames=50)
    frames = frames_in(session.stream(camera))
    assert [round(frame.time_s * FPS) for frame in frames] == list(range(50))
    assert {frame.num_dropped for frame in frames} == {0}
    assert max(frame.age_ms for frame in frames[1:]) == 0


# ---- at ----


def test_every_event_of_a_live_source_has_the_time_of_day_of_its_frame():
    camera = SteadyCamera(NEWEST, num_frames=6)
    session = session_of(camera, step_s=0.0, num_frames=6, replies=[[WORD, EOS]])
    kinds = set()
    for event in session.stream(camera, [Query("What happens?", 1.0)]):
        kinds.add(type(event))
        seconds = 0.25 + event.time_s  # the first frame came after a quarter of a second
        assert event.at.startswith(f"2026-05-01T12:00:0{int(seconds)}.")
        assert event.at.endswith("Z")
        assert event.to_json()["at"] == event.at
        if isinstance(event, FrameEvent) and event.index == 3:
            camera.clock.set_by_s = 3600.0
            break
    assert {FrameEvent, QueryEvent, ReplyEvent} <= kinds
    assert session.summary().at == event.at


def test_a_clock_jump_moves_at_and_never_time_s():
    camera = SteadyCamera(NEWEST, num_frames=5)
    session = session_of(camera, step_s=0.0, num_frames=5)
    frames = []
    for frame in session.stream(camera):
        frames.append(frame)
        camera.clock.set_by_s = 86400.0 if len(frames) >= 2 else 0.0
    assert [frame.time_s for frame in frames] == [k / FPS for k in range(5)]
    assert [frame.at[8:10] for frame in frames] == ["01", "01", "02", "02", "02"]
    assert max(frame.age_ms for frame in frames) < 1000


def test_a_file_has_neither_a_time_of_day_nor_an_age():
    session = session_of(SteadyCamera(NEWEST, 1), step_s=0.0, num_frames=2)
    for event in [*session.stream(Pictures([0.0, 0.5])), session.summary()]:
        document = event.to_json()
        assert {"at", "age_ms", "latency_ms", "capture"}.isdisjoint(document)


# ---- what happened to the source ----


def test_what_happened_to_the_source_is_told_before_its_next_frame():
    """Picture 20 is 5 pictures before the frame at 0.5 s."""
    gap = GapEvent(0.4, 2.0, 1, "camera 0 ended")
    lost = LostEvent(0.4, "camera 0 ended")
    camera = SteadyCamera(NEWEST, num_frames=3, happens={19: lost, 20: gap})
    session = session_of(camera, step_s=0.0, num_frames=3)
    events = list(session.stream(camera))
    assert [event.kind for event in events] == ["frame", "lost", "gap", "frame", "frame"]
    assert json.loads(json.dumps(events[2].to_json())) == {
        "event": "gap",
        "time_s": 0.4,
        "gap_s": 2.0,
        "num_attempts": 1,
        "reason": "camera 0 ended",
    }


def test_the_time_of_day_of_a_gap_is_its_own():
    gap = replace(GapEvent(0.4, 2.0, 1, "camera 0 ended"), at="2026-05-01T12:00:09.000Z")
    camera = SteadyCamera(NEWEST, num_frames=2, happens={20: gap})
    events = list(session_of(camera, step_s=0.0, num_frames=2).stream(camera))
    assert events[1].at == gap.at
