"""Talking to a stream that runs: settings, cut replies, an end on request, many questions."""

import threading

import numpy as np
import pytest

from mod_edge.errors import ConfigError
from mod_edge.plan.kv_budget import KvPlan, rows_of
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import Decision
from mod_edge.runtime import session as session_module
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import (
    FrameEvent,
    InstructionEvent,
    QueryEvent,
    ReplyEvent,
    RollEvent,
    TextEvent,
    ThresholdEvent,
)
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from tests.plan.test_protocol import (
    CONFIG,
    EOS,
    OTHER,
    SILENT,
    TOKENIZER,
    WORD,
    Pictures,
    ScriptedStream,
    session_of,
)

TIMES = [0.0, 0.5, 1.0, 1.5, 2.0]


def silent_session(replies=(), *, max_new_tokens=9, decisions=None):
    stream = ScriptedStream(decisions or [SILENT] * len(TIMES), list(replies))
    return session_of(stream, frames_per_step=1, max_new_tokens=max_new_tokens)


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


class Forgetful(ScriptedStream):
    """Silent at frames, and says nothing when asked, whatever was fed or evicted."""

    def __init__(self, *, on_evict=None):
        super().__init__([], [])
        self.on_evict = on_evict

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        self.num_frames = layout.num_frames

    def logits(self, rows):
        logits = np.zeros((len(rows), CONFIG.text_config.vocab_size), np.float32)
        logits[:, SILENT if self.num_frames else EOS] = 50
        return logits

    def evict(self, eviction):
        if self.on_evict is not None:
            self.on_evict()


def small_session(state, *, dense=200):
    options = SessionOptions(0.725, 4, 1, 64, 0.125)
    return Session(state, CONFIG, TOKENIZER, KvPlan(Rows(dense, dense), 0, 0.0, 0.0), options)


# ---- settings ----


class Unsure(ScriptedStream):
    """Silence is the most likely token, by a little."""

    def logits(self, rows):
        logits = super().logits(rows)
        if isinstance(self.stream[-1], tuple):
            logits[:, CONFIG.stream_config.stream_end_id] = 49.5
        return logits


def test_a_threshold_changes_decisions_from_the_next_frame_on_and_an_event_says_so():
    session = session_of(Unsure([SILENT] * 5, [[EOS]] * 5), frames_per_step=1, max_new_tokens=4)
    session.set_threshold(0.3)
    events = []
    for event in session.stream(Pictures(TIMES)):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index == 2:
            session.set_threshold(0.9)
    decisions = [event.decision for event in of(FrameEvent, events)]
    assert decisions == [Decision.SILENT] * 3 + [Decision.SPEAK] * 2
    assert of(ThresholdEvent, events) == [ThresholdEvent(0.0, 0.3), ThresholdEvent(1.0, 0.9)]


def test_a_threshold_set_during_an_answer_is_told_before_the_first_decision_that_uses_it():
    session = session_of(
        Unsure([SILENT] * 3, [[WORD, EOS]] + [[EOS]] * 2), frames_per_step=1, max_new_tokens=4
    )
    session.set_threshold(0.3)
    events = []
    for event in session.stream(Pictures(TIMES[:3]), [Query("What?", 0.3)]):
        events.append(event)
        if isinstance(event, TextEvent):
            session.set_threshold(0.9)
    told = events.index(ThresholdEvent(0.0, 0.9))
    decisions = [event.decision for event in of(FrameEvent, events[:told])]
    assert decisions == [Decision.SILENT]
    assert [event.decision for event in of(FrameEvent, events[told:])] == [Decision.SPEAK] * 2


def test_a_threshold_set_at_the_last_frame_is_told_too():
    session, events = silent_session(), []
    for event in session.stream(Pictures(TIMES)):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index == len(TIMES) - 1:
            session.set_threshold(0.4)
    assert events[-1] == ThresholdEvent(2.0, 0.4)


def test_thresholds_that_wait_for_a_frame_fill_no_memory_and_the_newest_stands(monkeypatch):
    monkeypatch.setattr(session_module, "MAX_WAITING", 2)
    session = silent_session()
    for threshold in (0.1, 0.2, 0.3, 0.4):
        session.set_threshold(threshold)
    told = of(ThresholdEvent, session.stream(Pictures(TIMES)))
    assert [event.threshold for event in told] == [0.3, 0.4]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_changes_nothing(threshold):
    session = silent_session()
    with pytest.raises(ConfigError, match=r"threshold=.*, wanted a probability, 0 to 1"):
        session.set_threshold(threshold)
    assert of(ThresholdEvent, session.stream(Pictures(TIMES))) == []


# ---- replies cut off, and the end on request ----


def test_a_cut_reply_ends_after_its_present_token_and_is_closed_in_the_cache():
    session = silent_session([[WORD, OTHER, WORD, OTHER, EOS]])
    events = []
    for event in session.stream(Pictures(TIMES[:2]), [Query("What?")]):
        events.append(event)
        if isinstance(event, TextEvent) and event.token_id == OTHER:
            cutting = threading.Thread(target=session.cut_reply)
            cutting.start()
            cutting.join()
    (reply,) = of(ReplyEvent, events)
    assert (reply.token_ids, reply.is_cut, reply.cut_by) == ([WORD, OTHER], True, "request")
    assert reply.to_json()["cut_by"] == "request"
    text = [token for token in session.state.stream if not isinstance(token, tuple)]
    end = text.index(EOS)
    assert text[end - 2 : end] == [WORD, OTHER]
    assert of(FrameEvent, events)[-1].index == 1


def test_a_reply_at_its_limit_says_so_even_if_it_is_cut_then():
    session = silent_session([[WORD, OTHER, WORD]], max_new_tokens=2)
    events = []
    for event in session.stream(Pictures(TIMES[:1]), [Query("What?")]):
        events.append(event)
        if isinstance(event, TextEvent) and event.token_id == OTHER:
            session.cut_reply()
    assert of(ReplyEvent, events)[0].cut_by == "limit"


def test_a_cut_without_a_reply_in_progress_does_nothing_to_the_next_one():
    session = silent_session([[WORD, OTHER, EOS]])
    events = []
    for event in session.stream(Pictures(TIMES), [Query("What?", 1.0)]):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index < 2:
            session.cut_reply()
    (reply,) = of(ReplyEvent, events)
    assert (reply.token_ids, reply.is_cut, reply.cut_by) == ([WORD, OTHER], False, None)


def test_a_stream_ends_on_request_and_names_what_was_not_reached():
    session = silent_session([[WORD, OTHER, WORD, EOS]])
    events = []
    for event in session.stream(Pictures(TIMES), [Query("What?", 0.5), Query("Then?", 2.0)]):
        events.append(event)
        if isinstance(event, TextEvent):
            session.stop()
    (reply,) = of(ReplyEvent, events)
    assert (reply.token_ids, reply.cut_by) == ([WORD], "request")
    assert events[-1] is reply
    assert session.summary().num_frames == 2
    assert session.summary().warnings == ["the query 'Then?' at 2 s was not reached"]
    with pytest.raises(ConfigError, match="has not begun or has ended"):
        session.ask("Now?")


# ---- many questions, and questions at awkward times ----


def test_ten_thousand_queries_put_at_once_are_answered_in_order_and_none_twice():
    session = small_session(Forgetful())
    asked, events = [f"{number}?" for number in range(10_000)], []
    for event in session.stream(Pictures(TIMES[:3])):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index == 0:
            for text in asked:
                session.ask(text)
    assert [event.query for event in of(QueryEvent, events)] == asked
    assert [event.query for event in of(ReplyEvent, events)] == asked
    assert len(of(FrameEvent, events)) == 3
    assert session.window.length.fits(session.window.capacity)
    assert session.summary().num_rolls > 1000


def test_ten_thousand_queries_that_were_not_reached_are_counted():
    session = small_session(Forgetful())
    for event in session.stream(Pictures(TIMES[:1])):
        if isinstance(event, FrameEvent):
            for number in range(10_000):
                session.ask(Query(f"{number}?", 9.0 + number))
    assert session.summary().warnings == [
        "the query '0?' at 9 s was not reached",
        "the query '1?' at 10 s was not reached",
        "the query '2?' at 11 s was not reached",
        "9997 more queries were not reached",
    ]


def test_a_query_beyond_the_most_that_may_wait_is_refused(monkeypatch):
    monkeypatch.setattr(session_module, "MAX_WAITING", 2)
    session = silent_session([[EOS]] * 3)
    for event in session.stream(Pictures(TIMES)):
        if isinstance(event, FrameEvent) and event.index == 1:
            session.ask("First?")
            session.ask("Second?")
            with pytest.raises(ConfigError, match="2 queries wait already; ask again when"):
                session.ask("Third?")
        if isinstance(event, FrameEvent) and event.index == 3:
            session.ask("Third?")
    assert session.summary().num_replies == 3


def test_a_query_during_a_roll_is_answered_after_its_step():
    asked = []

    def ask_once():
        if not asked:
            asked.append("During a roll?")
            asking = threading.Thread(target=session.ask, args=asked)
            asking.start()
            asking.join()

    session = small_session(Forgetful(on_evict=ask_once))
    events = list(session.stream(Pictures([0.5 * number for number in range(30)])))
    kinds = [type(event).__name__ for event in events]
    roll = kinds.index("RollEvent")
    assert kinds[roll : roll + 4] == ["RollEvent", "FrameEvent", "QueryEvent", "ReplyEvent"]
    assert [event.query for event in of(ReplyEvent, events)] == asked


def test_a_query_from_another_thread_during_a_reply_waits_for_its_end():
    session = silent_session([[WORD, OTHER, EOS], [OTHER, EOS]])
    events = []
    for event in session.stream(Pictures(TIMES), [Query("First?")]):
        events.append(event)
        if isinstance(event, TextEvent) and event.token_id == WORD:
            asking = threading.Thread(target=session.ask, args=("Second?",))
            asking.start()
            asking.join()
    replies = of(ReplyEvent, events)
    assert [(reply.query, reply.token_ids) for reply in replies] == [
        ("First?", [WORD, OTHER]),
        ("Second?", [OTHER]),
    ]
    assert events[events.index(replies[0]) + 1] == QueryEvent(0.0, "Second?", 0.0)


# ---- another instruction ----


def test_an_instruction_is_a_turn_at_once_and_stands_from_the_next_roll_on():
    session = small_session(Forgetful())
    first, second = Query("Describe."), "Tell me when somebody enters."
    events = []
    for event in session.stream(Pictures([0.5 * number for number in range(40)]), [first]):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index == 2:
            session.instruct(second)
    assert QueryEvent(1.0, second, 1.0, is_instruction=True) in events
    (stands,) = of(InstructionEvent, events)
    assert isinstance(events[events.index(stands) - 1], RollEvent)
    assert stands.instruction == second
    opening = len(session._protocol.opening_ids())
    kept = rows_of(CONFIG, opening, 1)
    num_tokens = len(session._protocol.query_ids(second))
    assert session.window.sink == kept.plus(Rows(num_tokens, num_tokens))
    assert stands.num_sink_tokens == session.window.sink.dense


def test_the_last_of_two_instructions_between_rolls_stands():
    session = small_session(Forgetful())
    events = []
    for event in session.stream(Pictures([0.5 * number for number in range(40)])):
        events.append(event)
        if isinstance(event, FrameEvent) and event.index == 1:
            session.instruct("One thing.")
            session.instruct("Another thing.")
    assert [event.instruction for event in of(InstructionEvent, events)] == ["Another thing."]


def test_an_instruction_that_would_not_fit_beside_what_was_asked_is_refused():
    session = small_session(Forgetful(), dense=150)
    long_one = Query("why " * 20, 1.0)
    for event in session.stream(Pictures(TIMES), [Query("Describe."), long_one]):
        if isinstance(event, FrameEvent) and event.index == 0:
            # alone it would fit, with a short question or a frame
            with pytest.raises(ConfigError, match=r"a reply to 'why why .* the window has 150"):
                session.instruct(long_one.text)
            session.instruct("Shorter.")
    assert session.summary().num_frames == len(TIMES)
