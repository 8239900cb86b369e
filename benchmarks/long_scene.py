"""A scene of an hour, narrated under every policy of the window.

Policies that need only sessions of the runtime run on it; those of `window_policies` run on the
PyTorch reference, whose decisions are the same. Frames are encoded once for all of them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from benchmarks.window_policies import (
    ENDLESS,
    TEXT_KEPT_LONGER,
    WITHOUT_REBASE,
    WindowPolicy,
    open_trimmed_stream,
)
from mod_edge.config import ModelConfig
from mod_edge.data.dialogue import Dialogue
from mod_edge.evaluation.free_running import Account, Said, account_of, queries_at_times
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.kv_budget import KvPlan, rows_of
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.capture.source import Frame
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.events import ReplyEvent
from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    LoadedModel,
    StreamState,
    UInt8Array,
    WrappedStream,
)
from mod_edge.runtime.queries import Query
from mod_edge.runtime.session import Session

# 25 minutes of silent frames, of 11 tokens each. Far beyond its training context a model may speak
# at every frame, up to 100 tokens each time: an hour would then take hours.
UNTRIMMED = KvPlan(Rows(2**15, 2**15), size_bytes=0, num_seconds=0.0, num_seconds_full=0.0)


@dataclass(frozen=True)
class LongScene:
    """A scene of an hour, encoded.

    Attributes:
        dialogue: what is due.
        embeds: (F, N, D) of its frames.
        fps: frames per second.
    """

    dialogue: Dialogue
    embeds: Float32Array
    fps: float


class WindowIsFull(Exception):  # noqa: N818, it is the end of a session, not an error
    """Ends a session whose window has no room for another frame."""


class EncodedFrames:
    """A source of the scene's frames from `first_frame` on, whose pictures are blank.

    Raises `WindowIsFull` before a frame if `is_full` says so.
    """

    is_live = False
    is_ready = True
    num_dropped = 0
    warnings: Sequence[str] = ()

    def __init__(
        self, scene: LongScene, first_frame: int = 0, is_full: Callable[[], bool] = lambda: False
    ) -> None:
        self._scene = scene
        self._first_frame = first_frame
        self._is_full = is_full

    def __iter__(self) -> Iterator[Frame]:
        blank = np.zeros((1, 1, 3), np.uint8)
        for index in range(self._first_frame, len(self._scene.embeds)):
            if self._is_full():
                raise WindowIsFull
            yield Frame(index, index / self._scene.fps, blank)


class EncodedStream(WrappedStream):
    """Takes the embeddings of `EncodedFrames` from the scene instead of encoding them."""

    def __init__(self, inner: StreamState, scene: LongScene, first_frame: int = 0) -> None:
        """Wrap `inner`, whose next frame is `first_frame`."""
        super().__init__(inner)
        self._embeds = scene.embeds[first_frame:]
        self._num_encoded = 0

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """See `StreamState`."""
        first = self._num_encoded
        self._num_encoded += len(frames)
        return self._embeds[first : self._num_encoded]


@dataclass(frozen=True)
class Narrator:
    """The model, on the runtime and in PyTorch.

    Attributes:
        config: the model's.
        tokenizer: the model's.
        options: of every session.
        plan: of the window.
        load: loads it on the runtime, for streams whose cache has the given rows.
        reference: the same weights in PyTorch.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    options: SessionOptions
    plan: KvPlan
    load: Callable[[Rows], LoadedModel]
    reference: VideoLLM

    def session(self, state: StreamState, plan: KvPlan) -> Session:
        """A session on an empty stream."""
        return Session(state, self.config, self.tokenizer, plan, self.options)


def narrate_rolling(narrator: Narrator, scene: LongScene) -> Account:
    """As the runtime does."""
    with narrator.load(narrator.plan.capacity) as model:
        state = EncodedStream(model.open_stream(), scene)
        with narrator.session(state, narrator.plan) as session:
            return account_of(session, EncodedFrames(scene), scene.dialogue)


def narrate_untrimmed(narrator: Narrator, scene: LongScene) -> Account:
    """In a window far larger than the training context; says nothing more once it is full."""
    queries = queries_at_times(scene.dialogue, scene.fps)
    with narrator.load(UNTRIMMED.capacity) as model:
        state = EncodedStream(model.open_stream(), scene)
        with narrator.session(state, UNTRIMMED) as session:
            source = EncodedFrames(scene, is_full=functools.partial(_is_full, session))
            replies = list(_replies_until_full(session, source, queries))
    answers = [each.text for each in replies if each.query is not None]
    unanswered = [""] * (len(queries) - len(answers))
    captions = (Said(each.time_s, each.text) for each in replies if each.query is None)
    return Account(tuple(captions), (*answers, *unanswered))


def narrate_trimmed(policy: WindowPolicy, narrator: Narrator, scene: LongScene) -> Account:
    """By a policy on the PyTorch reference."""
    stream = open_trimmed_stream(
        narrator.reference,
        policy,
        narrator.plan.capacity,
        evict_fraction=narrator.options.evict_fraction,
    )
    with narrator.session(EncodedStream(stream, scene), ENDLESS) as session:
        account = account_of(session, EncodedFrames(scene), scene.dialogue)
    return replace(account, num_rolls=len(stream.num_evicted))


def narrate_restarted(narrator: Narrator, scene: LongScene) -> Account:
    """In sessions one after another: when a window is full, a new one starts with the instruction.

    The description with which each new session begins is neither a caption nor an answer.
    """
    queries = queries_at_times(scene.dialogue, scene.fps)
    captions, answers = list[Said](), list[str]()
    next_frame = num_rolls = 0
    with narrator.load(narrator.plan.capacity) as model:
        while next_frame < len(scene.embeds):
            prompts = queries[len(answers) :]
            if next_frame:
                prompts = [Query(queries[0].text), *prompts]
            state = EncodedStream(model.open_stream(), scene, next_frame)
            with narrator.session(state, narrator.plan) as session:
                source = EncodedFrames(scene, next_frame, functools.partial(_is_full, session))
                replies = list(_replies_until_full(session, source, prompts))
                num_frames = session.summary().num_frames
            captions += [Said(each.time_s, each.text) for each in replies if each.query is None]
            told = [each.text for each in replies if each.query is not None]
            answers += told[1:] if next_frame else told
            num_rolls += next_frame > 0
            next_frame += num_frames
    return Account(tuple(captions), tuple(answers), num_rolls)


def _replies_until_full(
    session: Session, source: EncodedFrames, queries: Sequence[Query]
) -> Iterator[ReplyEvent]:
    with suppress(WindowIsFull):
        for event in session.stream(source, queries):
            if isinstance(event, ReplyEvent):
                yield event


def _is_full(session: Session) -> bool:
    """Whether the next frame would roll the window, or the last reply has rolled it."""
    window, config = session.window, session.config
    frame = rows_of(config, len(config.stream_config.interval_ids), 1)
    return bool(window.num_evicted) or not window.length.plus(frame).fits(window.capacity)


POLICIES: dict[str, Callable[[Narrator, LongScene], Account]] = {
    "rolling, as built": narrate_rolling,
    "rolling without rebase": functools.partial(narrate_trimmed, WITHOUT_REBASE),
    "never trimmed": narrate_untrimmed,
    "restarted when full": narrate_restarted,
    "text kept longer than vision": functools.partial(narrate_trimmed, TEXT_KEPT_LONGER),
}
