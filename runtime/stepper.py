"""Feeds text and frames to a stream: makes room in the window, runs the step, appends its rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mod_edge.config import ModelConfig
from mod_edge.plan.kv_budget import rows_of, rows_of_frames
from mod_edge.plan.kv_window import NO_ROWS, Eviction, KvWindow, Rows, SinkChange
from mod_edge.plan.layout import StepLayout, frame_pieces, step_layout
from mod_edge.runtime.loaded_model import Float32Array, FrameEmbeds, StreamState


@dataclass(frozen=True)
class SinkText:
    """An instruction that takes the place of what the sink holds after its first rows.

    Attributes:
        instruction: the text, for people.
        kept: the sink's first rows, which stay.
        token_ids: of the instruction's turn, which follow them.
    """

    instruction: str
    kept: Rows
    token_ids: Sequence[int]


@dataclass(frozen=True)
class Roll:
    """An eviction, the milliseconds it took, and the text that the sink got in it, if any."""

    eviction: Eviction
    roll_ms: float
    sink_text: SinkText | None = None


class Stepper:
    """One stream and its window; `rolls` collects evictions until the caller clears it."""

    def __init__(
        self, state: StreamState, config: ModelConfig, window: KvWindow, max_step_tokens: int
    ) -> None:
        self.state = state
        self.window = window
        self.rolls: list[Roll] = []
        self._config = config
        self._max_step_tokens = max_step_tokens
        self._sink_text: SinkText | None = None

    def replace_sink(self, text: SinkText) -> None:
        """Prefill the sink again with `text`, at the next eviction."""
        added = rows_of(self._config, len(text.token_ids), 0)
        self.window.replace_sink(SinkChange(text.kept, added))
        self._sink_text = text

    def feed_text(self, token_ids: Sequence[int], *, continues: bool) -> Float32Array:
        """Feed a run of text, in pieces if it is longer than a step.

        Args:
            token_ids: at least one.
            continues: whether it belongs to the segment in progress.

        Returns:
            Logits (V,) at its last token, in the model's memory.
        """
        layout = None
        for start in range(0, len(token_ids), self._max_step_tokens):
            piece = token_ids[start : start + self._max_step_tokens]
            layout = self._layout((len(piece),))
            added = Rows(layout.num_tokens, layout.num_rows)
            self._make_room(added, continues=continues)
            self._step(layout, piece, None)
            self.window.append(added, continues=continues)
            continues = True
        assert layout is not None, "text has at least one token"
        logits: Float32Array = self.state.logits([layout.num_tokens - 1])[0]
        return logits

    def feed_frames(
        self, prefix: Sequence[int], embeds: FrameEmbeds, *, closes_sink: bool
    ) -> Float32Array:
        """Feed `prefix` and frames with the interval, if any, between them, each frame a segment.

        Args:
            prefix: ids right before the first frame; may be empty.
            embeds: (F, N, D), from the stream.
            closes_sink: whether the sink ends between the prefix and the first frame.

        Returns:
            Logits (F, V) at each frame's last token, in the model's memory.
        """
        interval = self._config.stream_config.interval_ids
        num_frames = len(embeds)
        frames = rows_of_frames(self._config, num_frames, num_before=0)
        room_for_prefix = self._max_step_tokens - frames.dense
        continues = len(prefix) > room_for_prefix
        if continues:
            self.feed_text(prefix[:-1], continues=False)
            prefix = prefix[-1:]
        layout = self._layout(frame_pieces(num_frames, len(prefix), len(interval)))
        self._make_room(Rows(layout.num_tokens, layout.num_rows), continues=continues)
        self._step(layout, [*prefix, *interval * (num_frames - 1)], embeds)
        text = len(prefix)
        if closes_sink:
            self.window.append(rows_of(self._config, text, 0), continues=True)
            self.window.close_sink()
            text = 0
        self.window.append(rows_of(self._config, text, 1), continues=continues)
        for _ in range(num_frames - 1):
            self.window.append(rows_of(self._config, len(interval), 1), continues=False)
        return self.state.logits(layout.last_frame_rows.tolist())

    def take_back_frames(self, num_frames: int) -> None:
        """Undo the last frames fed; the next step overwrites their rows."""
        for _ in range(num_frames):
            self.window.take_back()

    def _layout(self, pieces: tuple[int, ...]) -> StepLayout:
        return step_layout(pieces, self._config.frame_num_tokens, self._config.num_kept)

    def _make_room(self, needed: Rows, *, continues: bool) -> None:
        eviction = self.window.make_room(needed, continues=continues)
        if eviction is None:
            return
        started = time.perf_counter()
        text, self._sink_text = self._sink_text, None
        if text is None:
            self.state.evict(eviction)
        else:
            self._prefill_sink(eviction, text.token_ids)
        self.rolls.append(Roll(eviction, 1000 * (time.perf_counter() - started), text))

    def _prefill_sink(self, eviction: Eviction, token_ids: Sequence[int]) -> None:
        """Evict, and feed the sink's new text into the room that the eviction leaves.

        The text is fed as at the stream's start, right after the sink's first rows as first
        written, so that its keys are first copies too; then the whole sink is moved up.
        """
        self.state.evict(replace(eviction, num_evicted=0))
        sink = eviction.sink
        for start in range(0, len(token_ids), self._max_step_tokens):
            piece = token_ids[start : start + self._max_step_tokens]
            layout = self._layout((len(piece),))
            self.state.step(layout, piece, None, position=sink.dense, past=sink)
            sink = sink.plus(Rows(layout.num_tokens, layout.num_rows))
        assert sink == self.window.sink, "the window counts the same rows"
        self.state.evict(Eviction(sink, NO_ROWS, self.window.length, eviction.num_evicted))

    def _step(
        self, layout: StepLayout, token_ids: Sequence[int], embeds: FrameEmbeds | None
    ) -> None:
        self.state.step(
            layout,
            token_ids,
            embeds,
            position=self.window.num_tokens,
            past=self.window.length,
        )
