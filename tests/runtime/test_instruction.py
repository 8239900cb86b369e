"""A new instruction in the sink: the cache equals one that was fed the same tokens, and goes on."""

import numpy as np
import pytest

from mod_edge.model.checkpoint import Checkpoint
from mod_edge.plan.layout import frame_pieces
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.cpu.torch_model import TorchModel
from mod_edge.runtime.events import FrameEvent, InstructionEvent, ReplyEvent, RollEvent
from mod_edge.runtime.loaded_model import WrappedStream
from mod_edge.runtime.queries import Query
from tests.runtime.stand_in_model import Feeder
from tests.runtime.test_stream import (
    ATOL_LOGITS,
    FAULT_LOGITS,
    FPS,
    Lockstep,
    make_session,
    on_onnx,
)

pytestmark = pytest.mark.numeric

# Keys and values of the sink after the roll: measured 4.4e-5 (keys up to 10), the rounding of six
# layers. One position late, keys are off by 5; a sink that keeps its old text changes logits by 20.
ATOL_ROWS = 3e-4
FIRST, SECOND = "Please narrate the video.", "Tell me when the box stops, and say nothing else."


@pytest.fixture(scope="module")
def reference(tiny_checkpoint):
    return Checkpoint(tiny_checkpoint).load_model()


def instructed(session, clip, queries, *, max_frames=44):
    """The events of a stream in which another instruction is given at its fifth frame."""
    events = []
    with session, VideoFile(clip, fps=FPS, max_frames=max_frames) as source:
        for event in session.stream(source, queries):
            events.append(event)
            if isinstance(event, FrameEvent) and event.index == 4:
                session.instruct(SECOND)
    return events


class Observer(WrappedStream):
    """Keeps the first frame's embeddings, and the cache before and after the sink changed."""

    first_embeds = None
    change = closing = None  # the eviction that leaves room, and the one after the prefill
    next_position = None  # of the step after them

    def encode(self, frames):
        embeds = super().encode(frames)
        if self.first_embeds is None:
            self.first_embeds = np.array(embeds[:1])
        return embeds

    def step(self, *args, position, past):
        super().step(*args, position=position, past=past)
        if self.closing is not None and self.next_position is None:
            self.next_position = position

    def rows(self):
        return [(layer.key.copy(), layer.value.copy()) for layer in self.inner._cache.layers]

    def evict(self, eviction):
        before = self.rows()
        super().evict(eviction)
        if any(eviction.room):
            self.change, self.before = eviction, before
        elif self.change is not None and self.closing is None:
            self.closing, self.after = eviction, self.rows()


def rotated(keys, positions, config):
    """Keys (S, G, E) with RoPE at `positions`, in float64, as complex numbers (i, i + E/2)."""
    angles = positions[:, None, None] * inverse_frequencies(config.text_config)
    first, second = np.split(keys.astype(np.float64), 2, axis=-1)
    turned = (first + 1j * second) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def fresh_sink(model, config, protocol, embeds, *, has_frame):
    """The reference's caches after the sink's tokens alone, fed from position 0."""
    stream = TorchModel(model).open_stream()
    feeder = Feeder(stream, config)
    if has_frame:
        opening = protocol.opening_ids()
        interval = len(config.stream_config.interval_ids)
        feeder.step(frame_pieces(1, len(opening), interval), opening, embeds)
        feeder.step((len(ids := protocol.query_ids(SECOND)),), ids)
    else:
        feeder.step((len(ids := protocol.opening_prompt(SECOND)),), ids)
    return stream._caches


@pytest.mark.parametrize("queries", [(Query(FIRST),), ()], ids=["replaced", "first instruction"])
def test_the_cache_equals_one_that_was_fed_the_same_tokens_at_the_same_positions(
    tiny_bundle, reference, clip, queries
):
    session = make_session(tiny_bundle, lambda *args: Observer(on_onnx(*args)), frames_per_step=1)
    instructed(session, clip, queries)
    seen, config = session.state, session.config
    wanted = fresh_sink(
        reference, config, session._protocol, seen.first_embeds, has_frame=bool(queries)
    )
    change, closing = seen.change, seen.closing
    # the rows that are kept keep their positions: the sink ends right before the first of them
    assert closing.num_evicted + closing.length.dense == seen.next_position
    for index, (before, after) in enumerate(zip(seen.before, seen.after, strict=True)):
        is_mod = index in config.mod_layers
        sink, length = closing.sink.of(is_mod), closing.length.of(is_mod)
        positions = wanted[index].positions.numpy() + closing.num_evicted
        assert len(positions) == sink
        keys = rotated(wanted[index].key.numpy(), positions, config)
        np.testing.assert_allclose(after[0][:sink], keys, rtol=0, atol=ATOL_ROWS)
        values = wanted[index].value.numpy()
        np.testing.assert_allclose(after[1][:sink], values, rtol=0, atol=ATOL_ROWS)
        late = rotated(wanted[index].key.numpy(), positions + 1, config)
        assert np.abs(after[0][:sink] - late).max() > 1
        # a row that is kept is neither moved in the stream nor computed again
        first = change.sink.of(is_mod) + change.dropped.of(is_mod)
        end = change.length.of(is_mod)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new[sink:length], old[first:end])


@pytest.mark.parametrize(
    ("queries", "max_step_tokens"),
    [((Query(FIRST),), 33), ((), 64)],  # 33: the new text is fed in two pieces
    ids=["replaced", "first instruction"],
)
def test_the_rolling_reference_agrees_before_and_after_the_sink_changed(
    tiny_bundle, reference, clip, queries, max_step_tokens
):
    """The reference keeps unrotated keys, and positions lowered by the evicted tokens."""
    session = make_session(
        tiny_bundle,
        lambda *args: Lockstep(on_onnx(*args), TorchModel(reference).open_stream()),
        frames_per_step=2,
        max_step_tokens=max_step_tokens,
    )
    events = instructed(session, clip, queries)
    names = [type(event).__name__ for event in events]
    changed = names.index("InstructionEvent")
    assert sum(isinstance(event, RollEvent) for event in events[changed:]) >= 2
    assert sum(isinstance(event, InstructionEvent) for event in events) == 1
    assert [event.query for event in events if isinstance(event, ReplyEvent) and event.query] == [
        *(query.text for query in queries),
        SECOND,
    ]
    assert max(session.state.differences) < ATOL_LOGITS


def test_a_sink_that_keeps_its_old_text_is_far_off(tiny_bundle, reference, clip):
    """What the comparison would see if the new text were not prefilled."""

    class Wrong(WrappedStream):
        is_prefilling = False

        def evict(self, eviction):
            super().evict(eviction)
            self.is_prefilling = any(eviction.room)

        def step(self, *args, **kwargs):
            if not self.is_prefilling:
                super().step(*args, **kwargs)

    session = make_session(
        tiny_bundle,
        lambda *args: Lockstep(Wrong(on_onnx(*args)), TorchModel(reference).open_stream()),
        frames_per_step=1,
    )
    instructed(session, clip, (Query(FIRST),))
    assert max(session.state.differences) > FAULT_LOGITS
