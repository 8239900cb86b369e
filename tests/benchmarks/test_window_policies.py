"""Policies of the window on the PyTorch reference: one is the runtime's, the others differ from it.

What the cache holds is judged on a stand-in that keeps the fed tokens themselves.
"""

from functools import cache

import pytest

from benchmarks.window_policies import (
    ENDLESS,
    ROLLING,
    TEXT_KEPT_LONGER,
    WITHOUT_REBASE,
    TrimmedStream,
    WindowPolicy,
    open_trimmed_stream,
)
from mod_edge.errors import CacheError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME, step_layout
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.cpu.torch_model import TorchModel
from mod_edge.runtime.events import FrameEvent, ReplyEvent, RollEvent
from mod_edge.runtime.loaded_model import StreamState
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session
from mod_edge.verification.sample_video import SampleVideo

FPS, NUM_FRAMES = 2.0, 40
QUERIES = (Query("Please narrate the video in real time."), Query("What happens?", 13.2))
OPTIONS = SessionOptions(
    threshold=0.725, max_new_tokens=5, frames_per_step=1, max_step_tokens=64, evict_fraction=0.125
)
# Ids of the stand-in's text. A reply may have commas, and the interval is one.
INTERVAL = 13
PROMPT, CLOSE, REPLY = 3, [5, 6], [7, 8, INTERVAL, 9, 10, 11]
SILENT_FRAMES = 4
CAPACITY = Rows(dense=260, mod=148)
NUM_TURNS = 20  # the window holds four


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return Checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def config(checkpoint):
    return checkpoint.config


@pytest.fixture(scope="module")
def model(checkpoint):
    return checkpoint.load_model()


@pytest.fixture(scope="module")
def plan(config):
    return plan_window(config, "260", text_minimum=80, dtype="float32")


def events_of(state, plan, checkpoint):
    with Session(state, checkpoint.config, checkpoint.tokenizer, plan, OPTIONS) as session:
        return list(session.stream(SampleVideo(FPS, NUM_FRAMES), QUERIES))


def said(events):
    decisions = [event.decision for event in events if isinstance(event, FrameEvent)]
    return decisions, [event.token_ids for event in events if isinstance(event, ReplyEvent)]


@pytest.fixture(scope="module")
def trimmed(model, plan, checkpoint):
    """`trimmed(policy)`: a stream that was run under a policy, and its events; once each."""

    @cache
    def run(policy):
        fraction = OPTIONS.evict_fraction
        stream = open_trimmed_stream(model, policy, plan.capacity, evict_fraction=fraction)
        return stream, events_of(stream, ENDLESS, checkpoint)

    return run


@pytest.mark.numeric
def test_rolling_on_the_reference_is_what_the_runtime_does(trimmed, model, plan, checkpoint):
    theirs = events_of(TorchModel(model).open_stream(), plan, checkpoint)
    stream, ours = trimmed(ROLLING)
    assert said(ours) == said(theirs)
    rolls = [event.num_evicted for event in theirs if isinstance(event, RollEvent)]
    assert stream.num_evicted == rolls
    assert len(rolls) > 5


@pytest.mark.parametrize("policy", [ROLLING, TEXT_KEPT_LONGER], ids=["rolling", "text kept"])
def test_rebased_positions_count_the_tokens_of_the_cache(trimmed, policy):
    stream, _ = trimmed(policy)
    assert stream.num_evicted
    assert_counted_up(dense_cache(stream).positions.tolist(), first=0)


def test_without_rebase_positions_grow_with_the_stream(trimmed):
    stream, _ = trimmed(WITHOUT_REBASE)
    positions = dense_cache(stream).positions.tolist()
    sink = next(n for n, position in enumerate(positions) if position != n)
    assert_counted_up(positions[sink:], first=sink + stream.num_evicted[-1])


def dense_cache(stream):
    return stream.inner._caches[0]


def assert_counted_up(positions, *, first):
    assert positions == list(range(first, first + len(positions)))


# ---- what the cache holds ----


class FedTokens(StreamState):
    """A stream that keeps what it was fed: an id per token of text, FRAME per token of a frame.

    Attributes:
        dense, mod: the rows of the two geometries.
    """

    name = "stand-in"
    kept = None

    def __init__(self):
        self.dense, self.mod = [], []

    def step(self, layout, token_ids, frame_embeds, *, position, past):
        assert past == Rows(len(self.dense), len(self.mod))
        ids = iter(token_ids)
        num_kept = 0 if not layout.num_frames else layout.num_rows - len(token_ids)
        for piece in layout.pieces:
            text = [next(ids) for _ in range(piece)]
            self.dense += text or [FRAME] * layout.frame_index.size
            self.mod += text or [FRAME] * num_kept

    def evict(self, eviction):
        for is_mod, rows in enumerate((self.dense, self.mod)):
            assert len(rows) == eviction.length.of(is_mod)
            first = eviction.sink.of(is_mod)
            del rows[first : first + eviction.dropped.of(is_mod)]

    def encode(self, frames):
        raise NotImplementedError

    def logits(self, rows):
        raise NotImplementedError


class Feeder:
    """Feeds turns to a stream as a session does."""

    def __init__(self, stream, config):
        self._stream, self._config = stream, config
        self._position = 0

    def frame(self, before):
        self._feed((len(before), FRAME), before)

    def text(self, ids):
        self._feed((len(ids),), ids)

    def turn(self):
        """Frames in silence, the last of which gets a reply; the next frame's prefix closes it."""
        self.frame(CLOSE)
        for _ in range(SILENT_FRAMES):
            self.frame([INTERVAL])
        self.text([PROMPT])
        for token_id in REPLY:
            self.text([token_id])

    def _feed(self, pieces, ids):
        layout = step_layout(pieces, self._config.frame_num_tokens, self._config.num_kept)
        self._stream.step(layout, ids, None, position=self._position, past=Rows(0, 0))
        self._position += layout.num_tokens


@pytest.fixture
def feed(config):
    """`feed(policy, capacity, num_turns)`: the rows of a stream after the sink and some turns."""

    def run(policy, capacity, num_turns):
        inner = FedTokens()
        stream = TrimmedStream(inner, config, policy, capacity, evict_fraction=0.125)
        feeder = Feeder(stream, config)
        feeder.frame([PROMPT] * 3)
        feeder.text([PROMPT] * 2)
        for _ in range(num_turns):
            feeder.turn()
            assert Rows(len(inner.dense), len(inner.mod)).fits(capacity)
        return inner

    return run


def text_of(rows):
    return [token for token in rows if token != FRAME]


def old_text(rows, sink):
    """The text between the sink and the oldest frame, without the interval before that."""
    text = rows[sink : rows.index(FRAME, sink)]
    return text[:-1] if text[-1:] == [INTERVAL] else text


@pytest.mark.parametrize("policy", [ROLLING, TEXT_KEPT_LONGER], ids=["rolling", "text kept"])
def test_the_sink_stays_and_both_geometries_keep_the_same_text(feed, config, policy):
    stream = feed(policy, CAPACITY, NUM_TURNS)
    first_frame = [FRAME] * config.frame_num_tokens
    assert stream.dense[: 5 + len(first_frame)] == [PROMPT] * 3 + first_frame + [PROMPT] * 2
    assert text_of(stream.mod) == text_of(stream.dense)


def test_text_is_kept_up_to_its_share_after_its_frames_are_dropped(feed, config):
    sink = 5 + config.frame_num_tokens
    limit = TEXT_KEPT_LONGER.text_share * (CAPACITY.dense - sink)
    turn = [*CLOSE, PROMPT, *REPLY]
    kept = old_text(feed(TEXT_KEPT_LONGER, CAPACITY, NUM_TURNS).dense, sink)
    assert limit - len(turn) < len(kept) <= limit
    assert kept[-len(turn) :] in (turn, [PROMPT, *REPLY, *CLOSE])
    assert len(old_text(feed(ROLLING, CAPACITY, NUM_TURNS).dense, sink)) < len(turn)


def test_frames_are_the_newest_ones_without_gaps(feed, config):
    """Between the frames that are left, only what a session feeds there."""
    rows = feed(TEXT_KEPT_LONGER, CAPACITY, NUM_TURNS).dense
    frame = [FRAME] * config.frame_num_tokens
    turn = [*CLOSE, *frame, *[INTERVAL, *frame] * SILENT_FRAMES, PROMPT, *REPLY]
    newest = rows[rows.index(FRAME, 5 + len(frame)) :]
    assert newest == (turn * NUM_TURNS)[-len(newest) :]
    assert len(newest) > len(turn)


def test_a_share_that_leaves_no_room_for_a_frame_is_an_error(feed):
    with pytest.raises(CacheError, match=r"does not fit in 260 rows.*lower text_share"):
        feed(WindowPolicy(text_share=1.0), CAPACITY, NUM_TURNS)
