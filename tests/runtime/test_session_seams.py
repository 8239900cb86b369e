"""What a session offers besides its events: questions while it streams, frames to draw, times."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from mod_edge.errors import ConfigError
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import Decision, Protocol
from mod_edge.plan.tokenizer import prepared, text_ids
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import FrameEvent, QueryEvent, ReplyEvent, TextEvent
from mod_edge.runtime.queries import Query, QueryQueue
from mod_edge.runtime.session import Session
from tests.byte_fallback import byte_fallback_tokenizer, byte_token
from tests.plan.test_protocol import (
    CONFIG,
    EOS,
    SILENT,
    SPEAK,
    WORD,
    Pictures,
    ScriptedStream,
    session_of,
)

HALF_SECONDS = [0.0, 0.5, 1.0, 1.5, 2.0]


class KeepingStream(ScriptedStream):
    """Says that layer 1 computed the tokens whose numbers are those of the frame and the next."""

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        super().step(layout, token_ids, frame_embeds, position=position, past=past)
        numbers = [] if frame_embeds is None else np.asarray(frame_embeds)[:, 0, 0].round()
        self.kept = {1: np.array([[n, n + 1] for n in numbers], np.int64).reshape(-1, 2)}


class WidePictures(Pictures):
    """Grey frames twice as wide as high; letterboxed, each is the grey of its number on average."""

    def __iter__(self):
        for number, time_s in enumerate(self.times):
            yield Frame(number, time_s, np.full((40, 80, 3), 2 * number, np.uint8))


def silent_session(replies=(), *, decisions=None, state=ScriptedStream, frames_per_step=1):
    stream = state(decisions or [SILENT] * len(HALF_SECONDS), list(replies))
    return session_of(stream, frames_per_step=frames_per_step, max_new_tokens=4)


# ---- text ----

BYTE_FALLBACK = prepared(byte_fallback_tokenizer())


class ByteFallbackStream(ScriptedStream):
    """Replies in tokens of the tokenizer with byte fallback."""

    prompt = text_ids(BYTE_FALLBACK, "\nAssistant:")[-2:]


def texts_of(replies, *, max_new_tokens):
    """The text events and the replies of a stream with byte fallback, asked at every frame."""
    session = session_of(
        ByteFallbackStream([SILENT] * len(HALF_SECONDS), replies),
        frames_per_step=1,
        max_new_tokens=max_new_tokens,
        tokenizer=BYTE_FALLBACK,
    )
    queries = [Query("What?", time_s) for time_s in HALF_SECONDS[: len(replies)]]
    events = list(session.stream(Pictures(HALF_SECONDS), queries))
    assert sum(isinstance(event, FrameEvent) for event in events) == len(HALF_SECONDS)
    return [
        [event for event in events if isinstance(event, kind) and event.time_s == query.time_s]
        for query in queries
        for kind in (TextEvent, ReplyEvent)
    ]


def test_no_bytes_of_a_reply_end_the_stream_and_its_pieces_are_its_text():
    token = BYTE_FALLBACK.token_to_id
    hello, man = token("▁Hello"), token("▁man")
    bytes_of = {byte: token(byte_token(byte)) for byte in b"\n\xc3\xa9\xff"}
    newline, start, end, wrong = bytes_of.values()
    pieces, (reply,), broken_pieces, (broken,), cut_pieces, (cut,) = texts_of(
        [
            [hello, newline, start, end, man, EOS],
            [hello, start, end, wrong, man, start, EOS],
            [hello, newline, start, end, man, hello, start, end, EOS],
        ],
        max_new_tokens=7,
    )
    assert [event.text for event in pieces] == ["Hello", "\n", "", "é", " man"]
    assert [event.token_id for event in pieces] == reply.token_ids
    assert reply.text == "Hello\né man"
    assert [event.text for event in broken_pieces] == ["Hello", "", "é", "", "� man", "", "�"]
    assert [event.token_id for event in broken_pieces] == [*broken.token_ids, start]
    assert broken.text == "Helloé� man�"
    assert "".join(event.text for event in cut_pieces) == cut.text == "Hello\né man Hello�"
    assert cut.is_cut


def test_a_window_without_room_after_a_cut_reply_in_byte_tokens_is_refused_at_the_start():
    opening = Protocol(CONFIG.stream_config, BYTE_FALLBACK, threshold=0.725).opening_ids()
    prefix = 2 + len(text_ids(BYTE_FALLBACK, "\n["))
    rows = Rows(len(opening) + prefix + CONFIG.frame_num_tokens - 1, 100_000)
    options = SessionOptions(0.725, 1, 1, 256, 0.125)
    session = Session(
        ScriptedStream([SILENT], []), CONFIG, BYTE_FALLBACK, KvPlan(rows, 0, 0.0, 0.0), options
    )
    with pytest.raises(ConfigError, match=r"frames_per_step=1 takes \d+ tokens per step"):
        next(session.stream(Pictures(HALF_SECONDS)))


# ---- questions while it streams ----


def test_a_question_asked_meanwhile_is_answered_before_the_next_frame():
    session = silent_session([[WORD, EOS]])
    seen = []
    for event in session.stream(Pictures(HALF_SECONDS)):
        seen.append(type(event).__name__)
        if isinstance(event, FrameEvent) and event.index == 1:
            session.ask("What happens?")
    assert seen[:6] == ["FrameEvent"] * 2 + ["QueryEvent", "TextEvent", "ReplyEvent", "FrameEvent"]


def test_a_question_from_another_thread_reaches_the_stream():
    session = silent_session([[WORD, EOS]] * 3)
    events = []
    for event in session.stream(Pictures(HALF_SECONDS)):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index in (0, 2, 3):
            asking = threading.Thread(target=session.ask, args=(f"At {event.index}?",))
            asking.start()
            asking.join()
    assert [event.query for event in events if isinstance(event, QueryEvent)] == [
        "At 0?",
        "At 2?",
        "At 3?",
    ]
    assert sum(isinstance(event, ReplyEvent) for event in events) == 3


def test_a_question_before_the_first_frame_waits_for_it_and_can_be_evicted():
    class AskingPictures(Pictures):
        def __iter__(self):
            session.ask("Already?")
            yield from super().__iter__()

    session = silent_session([[WORD, EOS]])
    events = list(session.stream(AskingPictures(HALF_SECONDS)))
    assert [type(event).__name__ for event in events[:2]] == ["FrameEvent", "QueryEvent"]
    assert events[0].decision is Decision.SILENT
    assert session.window.sink.dense == session._standing_rows.dense


def test_a_question_during_a_step_waits_for_the_next_one():
    questions = ["Now?"]

    class AskingStream(ScriptedStream):
        def step(self, *args, **kwargs):
            if questions:
                session.ask(questions.pop())
            super().step(*args, **kwargs)

    session = silent_session([[WORD, EOS]], state=AskingStream, frames_per_step=3)
    events = list(session.stream(Pictures(HALF_SECONDS)))
    frames = [event for event in events if isinstance(event, FrameEvent)]
    assert [frame.decision for frame in frames] == [Decision.SILENT] * len(HALF_SECONDS)
    assert sum(isinstance(event, ReplyEvent) for event in events) == 1


def test_a_question_may_have_a_time_of_its_own():
    session = silent_session([[WORD, EOS]])
    events = []
    for event in session.stream(Pictures(HALF_SECONDS)):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index == 0:
            session.ask(Query("What happens?", 1.5))
    asked = next(event for event in events if isinstance(event, QueryEvent))
    assert (asked.time_s, asked.asked_s) == (1.5, 1.5)
    frames = [event for event in events if isinstance(event, FrameEvent)]
    assert [frame.decision for frame in frames].index(Decision.ASKED) == 3


def test_a_question_outside_the_stream_is_refused():
    session = silent_session()
    with pytest.raises(ConfigError, match=r"cannot ask 'Now\?': the stream has not begun"):
        session.ask("Now?")
    list(session.stream(Pictures(HALF_SECONDS)))
    with pytest.raises(ConfigError, match="has not begun or has ended"):
        session.ask("Now?")


def test_a_question_that_would_not_fit_is_refused_where_it_is_asked():
    session = silent_session()
    for event in session.stream(Pictures(HALF_SECONDS)):
        if isinstance(event, FrameEvent) and event.index == 0:
            with pytest.raises(ConfigError, match=r"a reply to 'why why .* the window has 100000"):
                session.ask("why " * 120_000)
    assert session.summary().num_frames == len(HALF_SECONDS)


def test_queries_of_one_time_are_taken_in_the_order_in_which_they_were_put():
    queue = QueryQueue([Query("b", 2.0), Query("a", 1.0)])
    queue.put(Query("c", 2.0))
    queue.put(Query("first", 0.0))
    assert not queue.is_due_at(0.0)
    queue.receive()
    assert [query.text for query in queue.waiting()] == ["first", "a", "b", "c"]
    assert (queue.is_due_at(0.0), queue.is_due_before(0.0)) == (True, False)
    assert [queue.take().text for _ in range(4)] == ["first", "a", "b", "c"]
    assert (queue.is_due_at(9.0), queue.is_due_before(9.0)) == (False, False)


# ---- frames to draw ----


@pytest.mark.parametrize("frames_per_step", [1, 3])
def test_a_frame_event_carries_picture_placement_and_kept_tokens_where_asked(frames_per_step):
    decisions = [SILENT, SPEAK, SILENT, SILENT, SILENT]  # frame 2 is taken back and fed again
    session = silent_session(
        [[WORD, EOS]], decisions=decisions, state=KeepingStream, frames_per_step=frames_per_step
    )
    events = session.stream(WidePictures(HALF_SECONDS), details=True)
    frames = [event for event in events if isinstance(event, FrameEvent)]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    side = CONFIG.vision_config.image_size
    for frame in frames:
        assert (frame.details.image == 2 * frame.index).all()
        assert frame.details.image.shape == (40, 80, 3)
        assert frame.details.placement == (side // 4, 0, side // 2, side)
        # its own, though the stream's arrays are those of the last step by now
        assert frame.details.kept[1].tolist() == [frame.index, frame.index + 1]


def test_a_model_that_stretches_frames_sees_the_picture_in_its_whole_square():
    config = replace(CONFIG, vision_config=replace(CONFIG.vision_config, frame_resize="stretch"))
    options, rows = SessionOptions(0.725, 4, 2, 256, 0.125), Rows(1000, 1000)
    state = KeepingStream([SILENT] * 2 * len(HALF_SECONDS), [])  # by the greys
    session = Session(state, config, BYTE_FALLBACK, KvPlan(rows, 0, 0.0, 0.0), options)
    side = config.vision_config.image_size
    for event in session.stream(WidePictures(HALF_SECONDS), details=True):
        assert event.details.placement == (0, 0, side, side)
        assert event.details.kept[1][0] == 2 * event.index  # no black lowers the mean


def test_nobody_pays_for_details_that_nobody_wants():
    class Silent(ScriptedStream):
        @property
        def kept(self):
            pytest.fail("selections were read back")

    session = silent_session(state=Silent)
    frames = [e for e in session.stream(Pictures(HALF_SECONDS)) if isinstance(e, FrameEvent)]
    assert [frame.details for frame in frames] == [None] * len(HALF_SECONDS)


def test_details_stay_out_of_json():
    session = silent_session(state=KeepingStream)
    event = next(session.stream(WidePictures(HALF_SECONDS), details=True))
    assert "details" not in event.to_json()
    assert json.loads(json.dumps(event.to_json()))["decision"] == "silent"


# ---- times ----


def test_the_letterbox_is_timed_apart_from_vision(monkeypatch):
    now_s = iter(range(1000))
    monkeypatch.setattr("mod_edge.runtime.session.time.perf_counter", lambda: next(now_s))
    session = silent_session()
    event = next(session.stream(Pictures(HALF_SECONDS)))
    assert event.letterbox_ms == event.vision_ms == event.decoder_ms == 1000.0
    assert session.summary().letterbox_ms == {"p50": 1000.0, "p95": 1000.0}
