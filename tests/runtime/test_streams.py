"""Several streams on one model: results, fair order, batches of frames, failures, closing."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import BackendError, CacheError, ConfigError, SourceError
from mod_edge.plan.kv_budget import KvPlan, plan_capacity
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime import open_streams
from mod_edge.runtime.capture.clock import Clock
from mod_edge.runtime.capture.source import CaptureCounts
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import (
    FailureEvent,
    FrameEvent,
    QueryEvent,
    ReplyEvent,
    RollEvent,
    Summary,
    TextEvent,
)
from mod_edge.runtime.loaded_model import LoadedModel
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.runtime.streams import Streams
from tests.plan.test_protocol import (
    CONFIG,
    EOS,
    SILENT,
    SPEAK,
    TOKENIZER,
    WORD,
    Pictures,
    ScriptedStream,
)
from tests.runtime.streams import OPTIONS, STREAMS, TEXT_MINIMUM, without_times

# ---- results ----


def streams_of(model, bundle, plan, options, *, frames_per_encode):
    return Streams(
        model,
        bundle.config,
        bundle.tokenizer,
        plan,
        options,
        max_streams=2,
        frames_per_encode=frames_per_encode,
    )


def counting_encode(model, monkeypatch):
    """The number of frames of every call of the model's `encode`, by all streams."""
    counts, encode = [], model.encode

    def counted(frames):
        counts.append(len(frames))
        return encode(frames)

    monkeypatch.setattr(model, "encode", counted)
    return counts


@pytest.mark.numeric
def test_streams_give_what_each_gives_alone(load, tiny_bundle, monkeypatch):
    """Events are equal, though vision computes the frames of both in one batch."""
    bundle, options = open_bundle(tiny_bundle), replace(OPTIONS, frames_per_step=1)
    model, capacity = load()
    plan = plan_capacity(bundle.config, capacity, TEXT_MINIMUM, dtype="float32")
    batches = counting_encode(model, monkeypatch)
    together = {"first": [], "second": []}
    with streams_of(model, bundle, plan, options, frames_per_encode=2) as streams:
        for name, stream in zip(together, STREAMS, strict=True):
            streams.add(name, *stream)
        for name, event in streams.events():
            together[name].append(event)
    assert set(batches) == {1, 2}
    for ours, stream in zip(together.values(), STREAMS, strict=True):
        own_model, _ = load()
        alone = (own_model.open_stream(), bundle.config, bundle.tokenizer, plan, options)
        with own_model, Session(*alone) as session:
            theirs = list(session.stream(*stream))
        assert list(map(without_times, ours[:-1])) == list(map(without_times, theirs))
        kinds = [type(event) for event in ours]
        assert kinds.count(FrameEvent) >= 20
        assert kinds.count(ReplyEvent) >= 3
        assert kinds.count(RollEvent) >= 1
        assert kinds[-1] is Summary
    assert together["first"][:20] != together["second"][:20]


@pytest.mark.parametrize(
    ("max_streams", "frames_per_step", "wanted"), [(1, 1, 1), (2, 1, 2), (2, 3, 6), (9, 3, 6)]
)
def test_the_batch_of_vision_is_as_large_as_the_profile_allows(
    tiny_bundle, max_streams, frames_per_step, wanted
):
    """The profile's most frames are 8."""
    with open_streams(
        tiny_bundle, max_streams=max_streams, frames_per_step=frames_per_step, window="260"
    ) as streams:
        assert streams.frames_per_encode == wanted
        assert streams._model.limits.frames_per_encode == wanted


# ---- a model that plays scripts ----


class ScriptedModel(LoadedModel):
    """Its streams play scripts; `events` has the batches of `encode` and what was closed."""

    name = "script"

    def __init__(self, *scripts):
        self.scripts, self.batches, self.closed = list(scripts), [], []

    def open_stream(self):
        stream = ScriptedStream(*self.scripts.pop(0))
        stream.close = lambda: self.closed.append(stream.decisions)
        return stream

    def encode(self, frames):
        self.batches.append(len(frames))
        return ScriptedStream([], []).encode(frames)

    def close(self):
        self.closed.append("model")


QUIET = ([SILENT] * 20, [])
TALKING = ([SPEAK] + [SILENT] * 20, [[WORD] * 9 + [EOS]])


def scripted(*scripts, frames_per_step=1, max_streams=3, frames_per_encode=3):
    options = SessionOptions(0.725, 50, frames_per_step, 256, 0.125)
    plan = KvPlan(Rows(100_000, 100_000), 0, 0.0, 0.0)
    return Streams(
        ScriptedModel(*scripts),
        CONFIG,
        TOKENIZER,
        plan,
        options,
        max_streams=max_streams,
        frames_per_encode=frames_per_encode,
    )


def seconds(num_frames):
    return Pictures([0.5 * number for number in range(num_frames)])


def names_of(events):
    return "".join(name for name, event in events if not isinstance(event, Summary))


@pytest.mark.parametrize("when", ["between two events", "while its frame is encoded"])
def test_a_stream_that_is_stopped_ends_with_its_summary_and_the_others_go_on(when, monkeypatch):
    streams = scripted(QUIET, TALKING)
    sessions = {name: streams.add(name, seconds(9)) for name in "ab"}
    encode = streams._model.encode

    def encode_and_stop(frames):
        if when == "while its frame is encoded":
            sessions["b"].stop()
        return encode(frames)

    monkeypatch.setattr(streams._model, "encode", encode_and_stop)
    ends, num_words = [], 0
    with streams:
        for name, event in streams.events():
            num_words += isinstance(event, TextEvent)
            if num_words == 2:
                sessions["b"].stop()
            if isinstance(event, ReplyEvent):
                assert event.cut_by == "request"
            if isinstance(event, Summary):
                ends.append((name, event.num_frames))
    assert ends == [("b", 0 if when == "while its frame is encoded" else 1), ("a", 9)]


def test_streams_take_turns_and_are_encoded_together():
    streams = scripted(QUIET, QUIET, QUIET)
    for name, length in (("a", 4), ("b", 2), ("c", 4)):
        streams.add(name, seconds(length))
    with streams:
        assert names_of(streams.events()) == "abc" * 2 + "ac" * 2
    assert streams._model.batches == [3, 3, 2, 2]


@pytest.mark.parametrize(("room", "batches"), [(2, [2, 1] * 4), (1, [1] * 12)])
def test_no_batch_is_larger_than_stated(room, batches):
    streams = scripted(QUIET, QUIET, QUIET, frames_per_encode=room)
    for name in "abc":
        streams.add(name, seconds(4))
    with streams:
        assert names_of(streams.events()) == "abc" * 4
    assert streams._model.batches == batches


def test_batches_hold_the_frames_of_a_step_of_each_stream():
    streams = scripted(QUIET, QUIET, frames_per_step=3, frames_per_encode=6)
    first, second = streams.add("a", seconds(7)), streams.add("b", seconds(5))
    with streams:
        assert sorted(names_of(streams.events())) == sorted("a" * 7 + "b" * 5)
    assert streams._model.batches == [6, 5, 1]
    frames = [
        [token[1] for token in each.state.stream if isinstance(token, tuple)]
        for each in (first, second)
    ]
    assert [sorted(set(each)) for each in frames] == [list(range(7)), list(range(5))]


def test_a_long_reply_does_not_hold_up_another_stream():
    streams = scripted(TALKING, QUIET)
    streams.add("a", seconds(3))
    streams.add("b", seconds(9))
    with streams:
        events = list(streams.events())
    assert names_of(events)[:18] == "ab" * 9
    kinds = [type(event) for name, event in events if name == "a"]
    assert kinds[:11] == [FrameEvent, *[TextEvent] * 9, ReplyEvent]


# ---- live sources ----


class LivePictures(Pictures):
    """Pictures of a live source, one at a time."""

    is_live = True
    num_waiting = 0
    clock = Clock()
    counts = CaptureCounts()

    def wait(self):
        pass

    def end(self):
        self.is_ready = True

    def take_events(self):
        return []

    def take(self, _most):
        self._frames = getattr(self, "_frames", None) or iter(self)
        return list(islice(self._frames, 1)) or None


class Camera(LivePictures):
    """Its next frame is there after it was asked for `num_asked` times; then all others."""

    def __init__(self, times, num_asked):
        super().__init__(times)
        self.num_asked = num_asked

    @property
    def is_ready(self):
        self.num_asked -= 1
        return self.num_asked < 0

    def __iter__(self):
        for frame in super().__iter__():
            assert self.num_asked < 0, "would have waited for the camera"
            yield frame


def test_a_stream_without_a_frame_does_not_hold_up_another_one():
    streams = scripted(QUIET, QUIET)
    streams.add("camera", Camera([0.0, 0.5], num_asked=3))
    streams.add("file", seconds(9))
    with streams:
        names = [name for name, event in streams.events() if isinstance(event, FrameEvent)]
    assert names == ["file"] * 3 + ["camera", "file"] * 2 + ["file"] * 4


def test_a_frame_that_becomes_too_old_after_it_was_there_holds_up_no_other_stream():
    class Stale(LivePictures):
        num_taken = 0

        def wait(self):
            pytest.fail("would have waited for the camera")

        def take(self, most):
            self.num_taken += 1
            return [] if self.num_taken == 2 else super().take(most)

    streams = scripted(QUIET, QUIET)
    streams.add("camera", Stale([0.0, 0.5]))
    streams.add("file", seconds(5))
    with streams:
        names = [name for name, event in streams.events() if isinstance(event, FrameEvent)]
    assert names == ["camera", "file", "file", "camera", "file", "file", "file"]


def test_streams_wait_while_no_camera_has_a_frame(monkeypatch):
    waited = []
    monkeypatch.setattr("mod_edge.runtime.streams.time.sleep", waited.append)
    streams = scripted(QUIET, QUIET)
    for name in "ab":
        streams.add(name, Camera([0.0], num_asked=4))
    with streams:
        assert names_of(streams.events()) == "ab"
    assert waited == [0.005] * 4


def test_a_stream_that_is_the_only_one_waits_in_its_source():
    class Waiting(LivePictures):
        @property
        def is_ready(self):
            pytest.fail("was asked")

    streams = scripted(QUIET)
    streams.add("a", Waiting([0.0, 0.5]))
    with streams:
        assert names_of(streams.events()) == "aa"


# ---- coming, going and failing ----


class Failing(Pictures):
    """Fails after its frames."""

    def __iter__(self):
        yield from super().__iter__()
        raise SourceError("camera 0 ended after 2 frames")


def test_a_stream_that_fails_says_so_and_the_others_go_on():
    streams = scripted(QUIET, QUIET)
    door = streams.add("door", Failing([0.0, 0.5]))
    streams.add("yard", seconds(5))
    events, num_closed = [], []

    def run():
        for each in streams.events():
            events.append(each)
            num_closed.append(len(streams._model.closed))

    with streams:
        says = r"^stream 'door': camera 0 ended after 2 frames$"
        with pytest.raises(SourceError, match=says):
            run()
    summary = next(n for n, each in enumerate(events) if isinstance(each.event, Summary))
    assert num_closed[summary] == 1  # its memory is free
    ours = [event for name, event in events if name == "door"]
    assert ours[2] == FailureEvent(0.5, "camera 0 ended after 2 frames")
    assert ours[3].num_frames == 2
    assert sum(name == "yard" for name, _ in events) == 6
    with pytest.raises(ConfigError, match="the stream has not begun or has ended"):
        door.ask("What happens?")


def test_a_stream_that_fails_computes_its_summary_once(monkeypatch):
    summaries, summary = [], Session.summary

    def counted(session):
        summaries.append(session)
        return summary(session)

    monkeypatch.setattr(Session, "summary", counted)
    streams = scripted(QUIET)
    streams.add("door", Failing([0.0, 0.5]))
    with streams, pytest.raises(SourceError, match="after 2 frames"):
        list(streams.events())
    assert len(summaries) == 1


def test_a_stream_that_failed_may_be_added_again():
    streams = scripted(QUIET, QUIET)
    streams.add("door", Failing([0.0, 0.5]))
    with streams:
        for name, event in streams.events():
            if isinstance(event, FailureEvent):
                with pytest.raises(ConfigError, match="a stream named 'door' is running"):
                    streams.add(name, seconds(1))
            elif isinstance(event, Summary) and streams._model.scripts:
                streams.add(name, seconds(3))
    assert len(streams._model.closed) == 3


def test_a_stream_may_be_added_while_others_run():
    streams = scripted(QUIET, QUIET)
    streams.add("a", seconds(4))
    with streams:
        events = []
        for each in streams.events():
            events.append(each)
            if len(events) == 2:
                streams.add("b", seconds(2))
    assert names_of(events) == "aaabab"


def test_a_question_reaches_its_stream():
    streams = scripted(([SILENT] * 9, [[WORD, EOS]]), QUIET)
    first = streams.add("a", seconds(3))
    streams.add("b", seconds(3), [])
    asked = []
    with streams:
        for name, event in streams.events():
            if isinstance(event, FrameEvent) and name == "a" and event.index == 0:
                first.ask("What happens?")
            if isinstance(event, QueryEvent):
                asked.append((name, event.query))
    assert asked == [("a", "What happens?")]


def test_more_streams_than_planned_are_refused():
    with scripted(QUIET, max_streams=1) as streams:
        streams.add("a", seconds(2))
        says = "max_streams=1 and all of them are running: a; raise max_streams"
        with pytest.raises(ConfigError, match=re.escape(says)):
            streams.add("b", seconds(2))
    with pytest.raises(ConfigError, match="max_streams=0, wanted at least 1"):
        open_streams("bundle", max_streams=0)


def test_a_stream_that_cannot_start_takes_no_memory():
    with scripted(QUIET, QUIET) as streams:
        with pytest.raises(ConfigError, match="the window has 100000"):
            streams.add("a", seconds(2), [Query("why " * 120_000)])
        assert len(streams._model.closed) == 1
        streams.add("a", seconds(2))
        assert names_of(streams.events()) == "aa"


def test_streams_are_closed_before_their_model_also_when_one_cannot_be():
    streams = scripted(QUIET, TALKING)
    first, _ = streams.add("a", seconds(2)), streams.add("b", seconds(2))

    def fail():
        raise BackendError("the GPU is gone")

    first.state.close = fail
    with pytest.raises(BackendError, match="the GPU is gone"), streams:
        next(streams.events())
    assert streams._model.closed == [TALKING[0], "model"]


def test_a_fault_of_the_model_ends_all_streams():
    streams = scripted(QUIET, QUIET)
    streams.add("a", seconds(2))
    second = streams.add("b", seconds(2))

    def fail(*_, **__):
        raise CacheError("a step does not fit")

    second.state.step = fail
    with pytest.raises(CacheError, match="a step does not fit"), streams:
        list(streams.events())
    assert streams._model.closed[-1] == "model"


# ---- embeddings ----


def test_a_stream_keeps_its_embeddings_while_others_are_encoded(load, tiny_bundle):
    side = open_bundle(tiny_bundle).config.vision_config.image_size
    frames = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    model, _ = load()
    with model, model.open_stream() as first, model.open_stream() as second:
        kept = first.copy_embeds(model.encode(frames)[1:])
        wanted = values_of(model, kept)
        second.encode(frames[::-1].copy())
        model.encode(frames[:1])
        np.testing.assert_array_equal(values_of(model, kept), wanted)
        assert np.abs(wanted[0] - wanted[1]).max() > 0


def values_of(model, embeds):
    """The numbers of embeddings, also of those on the device of a stand-in."""
    if isinstance(embeds, np.ndarray):
        return embeds.copy()
    model.driver.synchronize()
    size = embeds.frame_bytes // np.dtype(model.lowering.dtype).itemsize
    return model.driver._cudart.read(embeds.address, (len(embeds), size), model.lowering.dtype)


# ---- the documentation ----


def test_the_example_in_the_documentation_runs(tiny_bundle, clip, monkeypatch, tmp_path, capsys):
    page = Path(__file__).parents[2] / "docs" / "api" / "runtime.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [each for each in examples if "open_streams" in each]
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    for name in ("door", "yard"):
        (tmp_path / f"{name}.mp4").symlink_to(clip)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    printed = capsys.readouterr().out
    reply = "ReplyEvent(time_s=0.0, at=None, query="
    assert f"door {reply}'Tell me when someone comes in.'" in printed
    assert f"yard {reply}'Please narrate the video in real time.'" in printed
