"""The actions of one stream that the bench times: vision, steps, replies, rolls, whole frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tokenizers import Tokenizer

from mod_edge.bench.ceilings import Work
from mod_edge.bench.step_work import BundleWork
from mod_edge.bench.timing import Action
from mod_edge.config import ModelConfig
from mod_edge.plan.kv_window import NO_ROWS, Eviction, Rows
from mod_edge.plan.layout import StepLayout, frame_pieces, step_layout
from mod_edge.plan.protocol import Protocol
from mod_edge.profiles import Profile
from mod_edge.runtime.loaded_model import Float32Array, FrameEmbeds, StreamState
from mod_edge.runtime.preprocess import fit_frame

QUERY = "What is happening now?"
REPLY_TOKENS = 20
WHOLE_FRAME, ROLL, TEXT_STEP = "whole frame", "roll", "step, text token"
TEXT_ID = 0  # the value of an id does not change what a step costs


@dataclass(frozen=True)
class Case:
    """An action to time, and what its row says.

    Attributes:
        name: of the row.
        action: waits until its results are there.
        num_past: tokens in the window before it; None where it does not matter.
        per_run: how many of `unit` a run takes or makes.
        unit: "frames", "tokens" or "".
        work: the least that it moves and computes; None if there is no bound.
    """

    name: str
    action: Action
    num_past: int | None = None
    per_run: int = 0
    unit: str = ""
    work: Work | None = None


class BenchStream:
    """A stream, and actions on it that can run in any order and any number of times.

    Its cache is written once, so that its pages are in memory; then a step at any fill reads what a
    fed stream would read.
    """

    def __init__(
        self,
        state: StreamState,
        config: ModelConfig,
        tokenizer: Tokenizer,
        profile: Profile,
        capacity: Rows,
        work: BundleWork,
        most_frames: int,
    ) -> None:
        """Prepare inputs, and write the whole cache.

        Args:
            state: a new stream, which the caller closes.
            config: of the model that `state` runs.
            tokenizer: the model's.
            profile: with the camera's format and the longest step.
            capacity: rows of the cache.
            work: of the parts of the bundle, for `config`.
            most_frames: of a step.
        """
        self.state, self.config, self.capacity = state, config, capacity
        self._profile, self._work = profile, work
        stream = config.stream_config
        self._protocol = Protocol(stream, tokenizer, stream.frame_token_interval_threshold)
        self._query_ids = self._protocol.query_ids(QUERY)[: profile.max_step_tokens]
        self._sink = len(self._protocol.opening_ids())
        numbers = np.random.default_rng(0)
        camera, side = profile.camera, config.vision_config.image_size
        self._image = numbers.integers(0, 256, (camera.height, camera.width, 3), np.uint8)
        self._pixels = np.zeros((most_frames, side, side, 3), np.uint8)
        embeds = state.encode(self._pixels)
        # `encode` may overwrite embeddings. On a device it does so with those of the same frames.
        self._embeds = np.array(embeds) if isinstance(embeds, np.ndarray) else embeds
        state.evict(self._eviction(Rows(1, 1)))

    def frame_rows(self, num_frames: int) -> Rows:
        """Rows that a step of frames appends."""
        return _rows(self._frame_layout(num_frames))

    def reply_rows(self) -> Rows:
        """Rows that a query and its reply append, without the reply's last token."""
        num_tokens = len(self._query_ids) + REPLY_TOKENS - 1
        return Rows(num_tokens, num_tokens)

    def cases_without_past(self) -> list[Case]:
        """Preprocessing, vision, head and prefill."""
        camera, most = self._profile.camera, len(self._pixels)
        frames = sorted({1, most})
        prefill = min(self._profile.max_step_tokens, self.capacity.dense, self.capacity.mod)
        layout = self._text_layout(prefill)
        return [
            Case(
                f"preprocessing, {camera.width}x{camera.height}",
                self._preprocess,
                per_run=1,
                unit="frames",
            ),
            *(
                Case(
                    f"vision, {frames_of(count)}",
                    partial(self.state.encode, self._pixels[:count]),
                    per_run=count,
                    unit="frames",
                    work=self._work.vision(count),
                )
                for count in frames
            ),
            Case(
                f"prefill, {prefill} tokens",
                lambda: self._step(layout, NO_ROWS),
                0,
                prefill,
                "tokens",
                self._work.step(_rows(layout), NO_ROWS),
            ),
            Case("head, 1 row", lambda: self.state.logits([0]), work=self._work.head(1)),
        ]

    def step_cases(self, past: Rows, frame_counts: Sequence[int]) -> list[Case]:
        """Decoder steps without their heads: a text token, and frames."""
        return [
            Case(
                name,
                partial(self._step, layout, past),
                past.dense,
                max(layout.num_frames, 1),
                "frames" if layout.num_frames else "tokens",
                self._work.step(_rows(layout), past),
            )
            for name, layout in self._step_layouts(frame_counts).items()
        ]

    def step_rows(self, frame_counts: Sequence[int]) -> dict[str, Rows]:
        """The rows that each of `step_cases` appends, by its name."""
        return {name: _rows(each) for name, each in self._step_layouts(frame_counts).items()}

    def whole_cases(self, past: Rows) -> list[Case]:
        """A frame from the camera's pixels to the decision, and a query up to its reply."""
        layout = self._frame_layout(1)
        num_prompt = len(self._query_ids)
        work = self._work.step(_rows(layout), past)
        work = work.plus(self._work.vision(1)).plus(self._work.head(1))
        return [
            Case(
                WHOLE_FRAME, lambda: self._whole_frame(layout, past), past.dense, 1, "frames", work
            ),
            Case(
                f"first token, query of {num_prompt}",
                lambda: self._first_token(past),
                past.dense,
                work=self._prompt_work(past),
            ),
            Case(
                f"reply, {REPLY_TOKENS} tokens",
                lambda: self._reply(past),
                past.dense,
                REPLY_TOKENS,
                "tokens",
                self._reply_work(past),
            ),
        ]

    def roll_case(self) -> Case:
        """An eviction from the full window."""
        return Case(ROLL, self._roll, self.capacity.dense)

    def roll_rows(self) -> Rows:
        """The rows that a roll drops."""
        fraction = self._profile.evict_fraction
        return Rows(*(max(1, int(fraction * (rows - self._sink))) for rows in self.capacity))

    def _eviction(self, dropped: Rows) -> Eviction:
        sink = Rows(self._sink, self._sink)
        return Eviction(sink, dropped, self.capacity, dropped.dense)

    def _roll(self) -> None:
        self.state.evict(self._eviction(self.roll_rows()))
        _ = self.state.kept  # on a device, waits for the eviction

    def _preprocess(self) -> None:
        fit_frame(self._image, self._pixels[0], self.config.vision_config)

    def _step(self, layout: StepLayout, past: Rows) -> None:
        embeds = self._embeds[: layout.num_frames] if layout.num_frames else None
        self._feed(layout, [TEXT_ID] * layout.text_index.size, past, embeds)
        _ = self.state.kept  # on a device, waits for the step

    def _feed(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        past: Rows,
        embeds: FrameEmbeds | None = None,
    ) -> None:
        self.state.step(layout, token_ids, embeds, position=past.dense, past=past)

    def _whole_frame(self, layout: StepLayout, past: Rows) -> None:
        self._preprocess()
        embeds = self.state.encode(self._pixels[:1])
        self._feed(layout, [TEXT_ID] * layout.text_index.size, past, embeds)
        self._protocol.decide(self.state.logits(layout.last_frame_rows.tolist())[0])

    def _first_token(self, past: Rows) -> int:
        self._feed(self._text_layout(len(self._query_ids)), self._query_ids, past)
        return self._chosen(len(self._query_ids) - 1)

    def _reply(self, past: Rows) -> None:
        token_id = self._first_token(past)
        layout = self._text_layout(1)
        for number in range(len(self._query_ids), self.reply_rows().dense):
            self._feed(layout, [token_id], past.plus(Rows(number, number)))
            token_id = self._chosen(0)

    def _chosen(self, row: int) -> int:
        logits: Float32Array = self.state.logits([row])[0]
        return int(logits.argmax())

    def _prompt_work(self, past: Rows) -> Work:
        prompt = _rows(self._text_layout(len(self._query_ids)))
        return self._work.step(prompt, past).plus(self._work.head(1))

    def _reply_work(self, past: Rows) -> Work:
        work = self._prompt_work(past)
        token = self._work.step(Rows(1, 1), past).plus(self._work.head(1))
        for _ in range(REPLY_TOKENS - 1):
            work = work.plus(token)
        return work

    def _step_layouts(self, frame_counts: Sequence[int]) -> dict[str, StepLayout]:
        frames = {f"step, {frames_of(count)}": self._frame_layout(count) for count in frame_counts}
        return {TEXT_STEP: self._text_layout(1)} | frames

    def _text_layout(self, num_tokens: int) -> StepLayout:
        return self._layout((num_tokens,))

    def _frame_layout(self, num_frames: int) -> StepLayout:
        """Of frames in mid-stream, with the interval, if any, before each."""
        num_between = len(self.config.stream_config.interval_ids)
        return self._layout(frame_pieces(num_frames, num_between, num_between))

    def _layout(self, pieces: tuple[int, ...]) -> StepLayout:
        return step_layout(pieces, self.config.frame_num_tokens, self.config.num_kept)


def frames_of(count: int) -> str:
    """The count with its noun."""
    return f"{count} {'frame' if count == 1 else 'frames'}"


def _rows(layout: StepLayout) -> Rows:
    return Rows(layout.num_tokens, layout.num_rows)
