"""The rolling window, compared with a reference that holds every token in a list."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mod_edge.errors import CacheError
from mod_edge.plan.kv_window import NO_ROWS, KvWindow, Rows, SinkChange

SINK = -1


@dataclass(frozen=True)
class Token:
    """One stream token: when it was fed, in which segment, and whether MoD layers hold it."""

    number: int
    segment: int
    is_in_mod: bool


class Reference:
    """The cache as two plain lists of tokens, changed only as an `Eviction` says."""

    def __init__(self):
        self.dense, self.mod = [], []
        self.num_fed = 0
        self.num_dropped = 0
        self.num_segments = 0
        self.sink_is_open = True

    def segments(self):
        """Ids of the segments after the sink that are still held, oldest first."""
        return list(dict.fromkeys(token.segment for token in self.dense if token.segment != SINK))

    def rows(self, segments):
        held = [token for token in self.dense if token.segment in segments]
        return Rows(len(held), sum(token.is_in_mod for token in held))

    def append(self, rows, *, continues):
        if self.sink_is_open:
            segment = SINK
        elif continues and self.segments():
            segment = self.segments()[-1]
        else:
            self.num_segments += 1
            segment = self.num_segments
        for n in range(rows.dense):
            # the window does not depend on which of a frame's tokens are kept: the last ones here
            token = Token(self.num_fed + n, segment, n >= rows.dense - rows.mod)
            self.dense.append(token)
            if token.is_in_mod:
                self.mod.append(token)
        self.num_fed += rows.dense

    def take_back(self):
        newest = self.segments()[-1]
        num_taken = self.rows([newest]).dense
        self.dense = [token for token in self.dense if token.segment != newest]
        self.mod = [token for token in self.mod if token.segment != newest]
        self.num_fed -= num_taken

    def evict(self, eviction):
        """Cut the rows out of both lists and return them."""
        gone = []
        for tokens, sink, dropped in (
            (self.dense, eviction.sink.dense, eviction.dropped.dense),
            (self.mod, eviction.sink.mod, eviction.dropped.mod),
        ):
            gone.append(tokens[sink : sink + dropped])
            del tokens[sink : sink + dropped]
        self.num_dropped += len(gone[0])
        return gone


def fits(rows, limit):
    return all(count <= most for count, most in zip(rows, limit, strict=True))


def state_of(window):
    """The window's state, comparable."""
    return {**vars(window), "_segments": list(window._segments)}


class WindowMachine(RuleBasedStateMachine):
    """Feeds, takes back and rolls at random, and evicts from the reference's lists too."""

    @initialize(
        dense=st.integers(20, 120),
        mod_share=st.floats(0.2, 1.0),
        evict_fraction=st.floats(0.0, 1.0),
    )
    def start(self, dense, mod_share, evict_fraction):
        capacity = Rows(dense, int(mod_share * dense))
        self.window = KvWindow(capacity, evict_fraction=evict_fraction)
        self.reference = Reference()

    @rule(num_text=st.integers(1, 9))
    @precondition(lambda self: self.reference.sink_is_open)
    def fill_the_sink(self, num_text):
        rows = Rows(num_text, num_text)
        if fits(self.window.length.plus(rows), self.window.capacity):
            self.window.append(rows, continues=True)
            self.reference.append(rows, continues=True)

    @rule()
    @precondition(lambda self: self.reference.sink_is_open)
    def close_the_sink(self):
        self.window.close_sink()
        self.reference.sink_is_open = False

    @rule(num_text=st.integers(0, 12), num_frames=st.integers(0, 2), continues=st.booleans())
    @precondition(lambda self: not self.reference.sink_is_open)
    def feed(self, num_text, num_frames, continues):
        num_text += num_frames == 0
        needed = Rows(num_text + 7 * num_frames, num_text + 2 * num_frames)
        self.make_room(needed, continues)
        if fits(self.window.length.plus(needed), self.window.capacity):
            self.window.append(needed, continues=continues)
            self.reference.append(needed, continues=continues)

    def make_room(self, needed, continues):
        window, reference = self.window, self.reference
        segments = reference.segments()
        evictable = segments[:-1] if continues else segments
        before, length = state_of(window), window.length
        has_room = fits(length.plus(needed), window.capacity)
        least = length.minus(reference.rows(evictable))
        if not fits(least.plus(needed), window.capacity):
            with pytest.raises(CacheError, match=f"{needed.dense} more tokens"):
                window.make_room(needed, continues=continues)
            assert state_of(window) == before
            return
        eviction = window.make_room(needed, continues=continues)
        assert (eviction is None) == has_room  # nothing is dropped early, and never nothing
        if eviction is None:
            assert state_of(window) == before
            return
        assert eviction.length == length
        assert eviction.sink == reference.rows([SINK])
        gone, gone_mod = reference.evict(eviction)
        # the same stream range in both geometries: whole segments, oldest first
        assert gone_mod == [token for token in gone if token.is_in_mod]
        went = list(dict.fromkeys(token.segment for token in gone))
        assert went == evictable[: len(went)]
        assert not set(went) & set(reference.segments())
        assert eviction.num_evicted == reference.num_dropped
        self.check_amount(eviction, needed, went, evictable, gone)

    def check_amount(self, eviction, needed, went, evictable, gone):
        """At least a chunk where rows are missing, or everything evictable; and no more."""
        free = window_rows_to_free(self.window, eviction, needed)
        assert fits(free, eviction.dropped) or went == evictable
        last = [token for token in gone if token.segment == went[-1]]
        without_last = eviction.dropped.minus(
            Rows(len(last), sum(token.is_in_mod for token in last))
        )
        assert not fits(free, without_last)

    @rule()
    @precondition(lambda self: bool(self.reference.segments()))
    def take_back(self):
        self.window.take_back()
        self.reference.take_back()

    @rule(num_tokens=st.integers(0, 5))
    @precondition(lambda self: bool(self.reference.segments()))
    def take_back_text(self, num_tokens):
        """Text that continues the newest segment, without its last tokens."""
        text = Rows(5, 5)
        if fits(text, self.window.capacity.minus(self.window.length)):
            self.window.append(text, continues=True)
            self.window.take_back_text(5 - num_tokens)
            kept = Rows(num_tokens, num_tokens)
            self.reference.append(kept, continues=True)

    @rule(rows=st.integers(1, 5))
    @precondition(lambda self: not self.reference.sink_is_open)
    def take_back_undoes_append(self, rows):
        needed = Rows(rows + 1, rows)
        if fits(needed, self.window.capacity.minus(self.window.length)):
            before = state_of(self.window)
            self.window.append(needed, continues=False)
            assert state_of(self.window) != before
            self.window.take_back()
            assert state_of(self.window) == before

    @invariant()
    def bookkeeping_equals_the_reference(self):
        window, reference = self.window, self.reference
        assert window.length == Rows(len(reference.dense), len(reference.mod))
        assert fits(window.length, window.capacity)
        assert window.sink == reference.rows([SINK])  # never dropped
        assert window.num_tokens == reference.num_fed
        assert window.num_evicted == reference.num_dropped
        assert window.sink_is_open == reference.sink_is_open

    @invariant()
    def the_sink_and_the_newest_tokens_are_left(self):
        numbers = [token.number for token in self.reference.dense]
        num_sink = self.window.sink.dense
        assert numbers[:num_sink] == list(range(num_sink))
        first = num_sink + self.window.num_evicted
        assert numbers[num_sink:] == list(range(first, self.window.num_tokens))


def window_rows_to_free(window, eviction, needed):
    """Missing rows in each geometry, at least a chunk if any are missing."""
    free = []
    for geometry in range(2):
        limit, sink = window.capacity[geometry], eviction.sink[geometry]
        missing = eviction.length[geometry] + needed[geometry] - limit
        chunk = int(window.evict_fraction * (limit - sink))
        free.append(max(chunk, missing) if missing > 0 else 0)
    return Rows(*free)


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


# ---- by hand ----

FRAME_ROWS = Rows(11, 3)  # ten tokens, two of them kept, and the interval token


def window_of(capacity, evict_fraction=0.25):
    window = KvWindow(capacity, evict_fraction=evict_fraction)
    window.append(Rows(5, 5), continues=True)
    window.close_sink()
    return window


def feed_frames(window, num_frames):
    evictions = []
    for _ in range(num_frames):
        evictions.append(window.make_room(FRAME_ROWS, continues=False))
        window.append(FRAME_ROWS, continues=False)
    return [eviction for eviction in evictions if eviction is not None]


def test_a_whole_chunk_is_dropped_at_once():
    window = window_of(Rows(5 + 8 * 11, 1000))
    evictions = feed_frames(window, 12)
    # a quarter of 88 rows is two frames: only the 9th and the 11th frame need room
    assert [eviction.dropped for eviction in evictions] == [Rows(22, 6)] * 2
    assert [eviction.num_evicted for eviction in evictions] == [22, 44]
    assert evictions[0].length == Rows(5 + 8 * 11, 5 + 8 * 3)
    assert window.num_tokens == 5 + 12 * 11


def test_a_full_geometry_makes_both_roll():
    window = window_of(Rows(1000, 5 + 4 * 3), evict_fraction=0.0)
    (eviction,) = feed_frames(window, 5)
    assert eviction.dropped == FRAME_ROWS
    assert window.length == Rows(5 + 4 * 11, 5 + 4 * 3)


def test_the_segment_in_progress_stays_and_may_fill_the_window():
    window = window_of(Rows(5 + 33, 1000))
    feed_frames(window, 2)
    window.append(Rows(6, 6), continues=False)  # a reply begins
    eviction = window.make_room(Rows(27, 27), continues=True)
    assert eviction.dropped == Rows(22, 6)
    window.append(Rows(27, 27), continues=True)
    assert window.length.dense == window.capacity.dense
    with pytest.raises(
        CacheError, match=r"1 more tokens \(1 rows in a MoD layer\).*sink of 5 \(5\)"
    ):
        window.make_room(Rows(1, 1), continues=True)
    # once it has ended, it is dropped whole
    assert window.make_room(Rows(1, 1), continues=False).dropped == Rows(33, 33)


def test_an_open_sink_is_never_dropped():
    window = KvWindow(Rows(10, 10), evict_fraction=0.5)
    window.append(Rows(8, 8), continues=False)
    with pytest.raises(CacheError, match="next to a sink of 8"):
        window.make_room(Rows(3, 3), continues=False)
    assert window.sink == window.length == Rows(8, 8)


# ---- a sink with another text ----


def test_a_new_text_of_the_sink_takes_its_place_at_the_next_eviction():
    window = window_of(Rows(5 + 8 * 11, 1000))
    window.replace_sink(SinkChange(Rows(2, 2), Rows(6, 6)))  # 3 rows longer
    assert feed_frames(window, 8) == []
    assert window.sink == Rows(5, 5)
    (eviction,) = feed_frames(window, 1)
    # the old text's 3 rows and two frames: a frame has no room for the next one and 3 rows
    assert (eviction.sink, eviction.dropped) == (Rows(2, 2), Rows(3 + 22, 3 + 6))
    assert (eviction.room, eviction.num_evicted) == (Rows(6, 6), 3 + 22 - 6)
    assert window.sink == Rows(8, 8)
    assert window.length == Rows(8 + 7 * 11, 8 + 7 * 3)
    (later,) = feed_frames(window, 2)
    assert (later.sink, later.room) == (Rows(8, 8), NO_ROWS)


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    capacity=st.integers(60, 90),
    mod_share=st.floats(0.4, 1.0),
    kept=st.integers(0, 5),
    added=st.integers(1, 12),
    num_frames=st.integers(6, 30),
    evict_fraction=st.floats(0, 0.5),
)
def test_after_any_change_of_the_sink_positions_go_on_and_all_rows_fit(
    capacity, mod_share, kept, added, num_frames, evict_fraction
):
    window = window_of(Rows(capacity, int(mod_share * capacity)), evict_fraction)
    window.replace_sink(SinkChange(Rows(kept, kept), Rows(added, added)))
    for eviction in feed_frames(window, num_frames):
        # the sink ends where the next token that is held begins, and never below position 0
        assert eviction.num_evicted >= 0
        for before, dropped, room in zip(
            eviction.length, eviction.dropped, eviction.room, strict=True
        ):
            assert before - dropped + room >= 0
    assert fits(window.length, window.capacity)
    assert window.num_evicted == window.num_tokens - window.length.dense
    assert window.sink in (Rows(5, 5), Rows(kept + added, kept + added))


def test_a_new_text_that_does_not_fit_is_an_error_that_names_its_rows():
    window = window_of(Rows(5 + 33, 1000))
    window.replace_sink(SinkChange(Rows(2, 2), Rows(27, 27)))
    with pytest.raises(CacheError, match=r"next to a sink of 29 \(29\)"):
        feed_frames(window, 4)
