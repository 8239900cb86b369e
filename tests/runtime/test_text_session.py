"""Conversations of text alone: transformers' tokens, rolls, where replies end, what is refused."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import ConfigError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.targets import Lowering
from mod_edge.plan.tokenizer import text_ids
from mod_edge.profiles import load_profile
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import QueryEvent, ReplyEvent, RollEvent, TextEvent
from mod_edge.runtime.open_session import open_text_session
from mod_edge.runtime.text_session import TextSession
from tests.conftest import CAPACITY
from tests.model.test_reference import hugging_face_llama
from tests.plan.test_protocol import BOS, CONFIG, EOS, OTHER, TOKENIZER, WORD, ScriptedStream

QUERIES = ("What happens?", "Who is here, é 日本?", "And then?")
MAX_NEW_TOKENS = 12


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


# ---- compared with transformers ----


def replies_of_transformers(checkpoint, end=None):
    """Each reply's ids without a cache, all ids computed again for each token.

    Also the smallest lead of a likeliest token over the next. A reply ends before the text `end`.
    """
    llama = hugging_face_llama(checkpoint.load_model())
    tokenizer, stream = checkpoint.tokenizer, checkpoint.config.stream_config
    ids, replies, leads = [stream.bos_token_id], [], []
    text = f"{stream.system_prompt}\n"
    for query in QUERIES:
        ids += text_ids(tokenizer, f"{text}\nUser: {query}\nAssistant:")
        reply = []
        while len(reply) < MAX_NEW_TOKENS:
            logits = llama(torch.tensor([ids + reply])).logits[0, -1]
            best, next_best = logits.topk(2).values.tolist()
            leads.append(best - next_best)
            if int(logits.argmax()) == stream.eos_token_id:
                break
            reply.append(int(logits.argmax()))
            said, found, _ = tokenizer.decode(reply).partition(end or "never")
            if found:
                reply = next(reply[:n] for n in range(99) if tokenizer.decode(reply[:n]) == said)
                break
        replies.append(reply)
        ids += [*reply, stream.eos_token_id]
        text = ""
    return replies, min(leads)


@pytest.fixture(scope="module")
def dense(write_tiny):
    """The tiny weights for transformers, without routers: MoD layers compute all text."""
    return Checkpoint(write_tiny(None))


@pytest.fixture(scope="module")
def theirs(dense):
    """The replies of transformers."""
    replies, lead = replies_of_transformers(dense)
    assert lead > 1e-3  # measured 0.041; rounding moves a logit by 1e-4
    return replies


every_backend = pytest.mark.parametrize(
    "lowering", [None, ("cpu", "fp32"), ("cuda", "fp32")], ids=["reference", "delta", "in_place"]
)


@pytest.fixture
def conversation(tiny_checkpoint, any_bundle):
    """`conversation(lowering)`: events of `QUERIES` on that bundle, or on the reference if None."""

    def run(lowering):
        where = {"backend": "onnx", "device": "cpu"} if lowering else {"backend": "torch"}
        if lowering is None:
            where["checkpoint"] = tiny_checkpoint
        bundle = any_bundle(*(lowering or ("cpu", "fp32")))
        profile = replace(load_profile("cpu"), max_step_tokens=32)  # prompts are fed in pieces
        with open_text_session(
            bundle, profile=profile, max_new_tokens=MAX_NEW_TOKENS, **where
        ) as session:
            return list(session.converse(QUERIES))

    return run


@pytest.mark.numeric
@every_backend
def test_replies_are_those_of_transformers_turn_by_turn(theirs, conversation, lowering):
    events = conversation(lowering)
    assert [event.token_ids for event in of(ReplyEvent, events)] == theirs
    assert [event.query for event in of(QueryEvent, events)] == list(QUERIES)
    assert of(RollEvent, events) == []


@pytest.mark.numeric
@every_backend
def test_what_a_model_says_for_the_user_is_forgotten(
    theirs, dense, conversation, lowering, monkeypatch
):
    end = dense.tokenizer.decode(theirs[1][4:7])
    wanted, lead = replies_of_transformers(dense, end)
    assert lead > 1e-3
    assert wanted[:2] == [theirs[0], theirs[1][:4]]
    assert wanted[2] != theirs[2]  # what was said before matters
    monkeypatch.setattr(Protocol, "next_turn", end)
    replies = of(ReplyEvent, conversation(lowering))
    assert [reply.token_ids for reply in replies] == wanted
    assert not replies[1].is_cut


@pytest.mark.numeric
def test_a_long_conversation_rolls_and_the_rolling_reference_agrees(tiny_bundle, tiny_checkpoint):
    outcomes = []
    for where in ({"backend": "onnx"}, {"backend": "torch", "checkpoint": tiny_checkpoint}):
        with open_text_session(tiny_bundle, window="200", max_new_tokens=20, **where) as session:
            events = list(session.converse(QUERIES * 4))
            summary = session.summary()
        rolls = [event.num_evicted for event in of(RollEvent, events)]
        outcomes.append(([event.token_ids for event in of(ReplyEvent, events)], rolls))
        assert session.window.capacity == (200, 200)
        prompt = text_ids(session._tokenizer, f"\nUser: {QUERIES[0]}\nAssistant:")
        assert session.window.sink.dense > len(prompt)  # the system prompt and the first query
        assert (summary.num_rolls, summary.num_evicted) == (len(rolls), rolls[-1])
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) >= 2


# ---- where a reply ends ----


def scripted(replies, *, max_new_tokens=9, rows=100_000, kind=ScriptedStream, stop=()):
    """A session whose model says `replies`, and the stream, which holds what was fed."""
    stream = kind([], replies)
    options = SessionOptions(0.0, max_new_tokens, 1, 256, 0.125, stop=stop)
    plan = KvPlan(Rows(rows, rows), 0, 0.0, 0.0)
    return TextSession(stream, CONFIG, TOKENIZER, plan, options), stream


def ids_of(text):
    return text_ids(TOKENIZER, text)


OPENING = [BOS, *ids_of(CONFIG.stream_config.system_prompt + "\n\nUser: a\nAssistant:")]
NEXT = ids_of("\nUser: b\nAssistant:")
MARK = ids_of("\nUser:")
WORDS = TOKENIZER.decode([WORD, OTHER])


@pytest.mark.parametrize(
    ("said", "max_new_tokens", "fed", "ids", "is_cut"),
    [
        ([WORD, OTHER, EOS], 9, [WORD, OTHER, EOS], [WORD, OTHER], False),
        ([WORD, OTHER, WORD], 2, [WORD, OTHER, EOS], [WORD, OTHER], True),
        ([WORD, OTHER, *MARK, WORD], 9, [WORD, OTHER, EOS], [WORD, OTHER], False),
        ([*MARK, WORD], 9, [EOS], [], False),
        ([EOS], 9, [EOS], [], False),
    ],
    ids=["end token", "limit", "next turn", "next turn at once", "end token at once"],
)
def test_the_next_turn_follows_what_was_said_and_the_end_token(
    said, max_new_tokens, fed, ids, is_cut
):
    session, stream = scripted([said, [EOS]], max_new_tokens=max_new_tokens)
    events = list(session.converse(["a", "b"]))
    assert stream.stream == [*OPENING, *fed, *NEXT]
    reply = of(ReplyEvent, events)[0]
    assert (reply.token_ids, reply.is_cut) == (ids, is_cut)
    assert reply.text == TOKENIZER.decode(ids).strip()
    shown = "".join(event.text for event in of(TextEvent, events))
    assert shown == TOKENIZER.decode(ids)


def test_a_stop_text_ends_a_reply_and_is_not_remembered():
    said = [WORD, *ids_of("END"), OTHER]
    session, stream = scripted([said, [EOS]], stop=("never", "END"))
    events = list(session.converse(["a", "b"]))
    assert stream.stream == [*OPENING, WORD, EOS, *NEXT]
    reply = of(ReplyEvent, events)[0]
    assert (reply.token_ids, reply.is_cut, reply.cut_by) == ([WORD], False, None)


def test_a_reply_of_text_alone_is_cut_on_request():
    session, stream = scripted([[WORD, OTHER, WORD, EOS], [EOS]])
    events = []
    for event in session.converse(["a", "b"]):
        events.append(event)
        if isinstance(event, TextEvent) and event.token_id == OTHER:
            session.cut_reply()
    assert stream.stream == [*OPENING, WORD, OTHER, EOS, *NEXT]
    reply = of(ReplyEvent, events)[0]
    assert (reply.token_ids, reply.is_cut, reply.cut_by) == ([WORD, OTHER], True, "request")


def test_text_like_the_next_turn_is_shown_when_it_turns_out_to_be_none():
    said = ids_of(" a\nUse it")
    session, _ = scripted([[*said, EOS]])
    events = list(session.converse(["a"]))
    pieces = [event.text for event in of(TextEvent, events)]
    assert "".join(pieces) == " a\nUse it"
    assert of(ReplyEvent, events)[0].text == "a\nUse it"


def test_replies_come_token_by_token():
    session, stream = scripted([[WORD, OTHER, EOS]])
    events = session.converse(["a"])
    assert isinstance(next(events), QueryEvent)
    assert stream.stream == []
    assert next(events).token_id == WORD
    assert stream.stream == OPENING
    assert next(events).token_id == OTHER
    assert stream.stream == [*OPENING, WORD]


def test_a_conversation_goes_on_where_it_ended():
    session, stream = scripted([[WORD, EOS], [OTHER, EOS]])
    list(session.converse(["a"]))
    events = list(session.converse(["b"]))
    assert stream.stream == [*OPENING, WORD, EOS, *NEXT, OTHER]
    assert of(ReplyEvent, events)[0].token_ids == [OTHER]
    assert session.summary().num_replies == 2


# ---- what is refused ----


def test_a_conversation_whose_last_reply_was_left_is_over():
    session, _ = scripted([[WORD, EOS]])
    next(session.converse(["a"]))
    with pytest.raises(ConfigError, match="was not read to its end; open a new session"):
        next(session.converse(["b"]))


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (["a", " "], "a query is empty"),
        (["a", "\udcff"], "is not Unicode text"),
        (["a", "why " * 70], r"a reply to 'why why .* the window has 100 \(100\)"),
        (
            ["why " * 90],
            r"'why why .* takes \d+ tokens: with the system prompt and the first query that is ",
        ),
    ],
    ids=["empty", "not text", "later one too long", "first one too long"],
)
def test_all_queries_are_checked_before_the_first_reply(queries, message):
    session, stream = scripted([[WORD, EOS]], rows=100)
    with pytest.raises(ConfigError, match=message):
        next(session.converse(queries))
    assert stream.stream == []


class Talker(ScriptedStream):
    """Says one word for ever, whatever was fed or evicted."""

    def step(self, *_args, **_kwargs):
        pass

    def logits(self, rows):
        logits = np.zeros((len(rows), CONFIG.text_config.vocab_size), np.float32)
        logits[:, WORD] = 50
        return logits

    def evict(self, eviction):
        pass


def test_queries_are_accepted_while_they_have_room_and_no_longer():
    for num_words in range(1, 100):
        session, _ = scripted([], max_new_tokens=5, rows=100, kind=Talker)
        query = "why " * num_words
        rows = len(OPENING) + len(ids_of(f"\nUser: {query}\nAssistant:")) + 5
        events = session.converse(["a", query])
        if rows + 2 > 100:  # the end of a cut reply is two ids
            with pytest.raises(ConfigError, match=r"a reply to 'why why "):
                next(events)
            return
        assert len(of(ReplyEvent, events)) == 2


# ---- windows and times ----


def test_a_window_for_text_has_as_many_rows_in_every_layer(tiny_bundle, bundle_for):
    bundle = open_bundle(tiny_bundle)
    video = bundle.plan("120s", 12)
    assert bundle.text_plan("120s", 12, window="345").capacity == (345, 345)
    assert bundle.text_plan("345", 12).capacity == (345, 345)
    with pytest.raises(ConfigError, match="is too small: the sink, one frame"):
        bundle.plan("120s", 12, window="40")
    assert bundle.text_plan("120s", 12, window="40").capacity == (40, 40)
    with pytest.raises(ConfigError, match="wanted at least 1 token"):
        bundle.text_plan("120s", 12, window="0")
    with pytest.raises(ConfigError, match="both window and kv_budget"):
        bundle.text_plan("120s", 12, window="40", kv_budget_mib=1.0)
    for plan in (bundle.text_plan("120s", 12), bundle.text_plan("99", 12, window="120s")):
        assert plan.capacity.dense == plan.capacity.mod == sum(video.capacity) // 2
        assert 0 <= video.size_bytes - plan.size_bytes < 2 * 6 * 2 * 16 * 4
    budget = bundle.text_plan("120s", 12, kv_budget_mib=1.0)
    assert budget.size_bytes <= 2**20
    assert budget.capacity.dense == budget.capacity.mod
    fixed = open_bundle(bundle_for("cuda", "fp32")).text_plan("120s", 12)
    assert fixed.capacity == CAPACITY
    lowering = Lowering("tensorrt-delta", "fp32")
    for_engines = replace(bundle, manifest=replace(bundle.manifest, lowering=lowering))
    assert for_engines.text_plan("120s", 12) == video


def test_the_summary_has_tokens_per_second_and_the_time_to_the_first_token(monkeypatch):
    now_s = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now_s))
    session, _ = scripted([[WORD, OTHER, EOS]])
    list(session.converse(["a"]))
    summary = session.summary()
    assert summary.first_token_ms == {"p50": 1000.0, "p95": 1000.0}
    assert summary.tokens_per_s == 1.0
    assert (summary.num_replies, summary.num_reply_tokens) == (1, 2)
    assert summary.num_tokens == len(OPENING) + 2
    assert summary.to_json()["event"] == "summary"
    assert math.isclose(summary.cache_fill, summary.num_tokens / 100_000, abs_tol=1e-4)


def test_the_summary_has_the_times_of_a_reply_that_was_stopped(monkeypatch):
    now_s = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now_s))
    session, _ = scripted([[WORD, OTHER, EOS]])
    events = session.converse(["a"])
    for _ in range(3):  # the query and two tokens
        next(events)
    summary = session.summary()
    assert summary.first_token_ms == {"p50": 1000.0, "p95": 1000.0}
    assert (summary.num_replies, summary.tokens_per_s) == (0, 1.0)


def test_a_session_without_a_reply_has_a_summary():
    summary = scripted([])[0].summary()
    assert (summary.num_replies, summary.tokens_per_s, summary.time_s) == (0, 0.0, 0.0)
