"""A conversation with a model on one stream: what video and text alone have in common."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from tokenizers import Tokenizer

from mod_edge.config import ModelConfig
from mod_edge.errors import ConfigError
from mod_edge.plan.kv_budget import KvPlan
from mod_edge.plan.kv_window import KvWindow, Rows
from mod_edge.plan.protocol import Protocol
from mod_edge.plan.reply_text import ReplyText
from mod_edge.plan.sampling import GREEDY, Sampler, Sampling
from mod_edge.runtime.events import CutBy, Event, InstructionEvent, ReplyEvent, RollEvent, TextEvent
from mod_edge.runtime.loaded_model import LoadedModel, StreamState
from mod_edge.runtime.stats import Latencies
from mod_edge.runtime.stepper import Stepper

AnyConversation = TypeVar("AnyConversation", bound="Conversation")


@dataclass(frozen=True)
class SessionOptions:
    """Options of a stream.

    Attributes:
        threshold: see `Protocol`; 0..1.
        max_new_tokens: longest reply.
        frames_per_step: frames fed in one decoder step; of a live source at most those that wait.
            Decisions are the same as with one frame per step: if a frame speaks, the frames after
            it are taken back.
        max_step_tokens: longest step; longer text is fed in pieces.
        evict_fraction: see `KvWindow`.
        sampling: how the tokens of replies are chosen.
        stop: texts at which a reply ends too; they are not part of it.
    """

    threshold: float
    max_new_tokens: int
    frames_per_step: int
    max_step_tokens: int
    evict_fraction: float
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        for name in ("max_new_tokens", "frames_per_step", "max_step_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, wanted at least 1")
        if "" in self.stop:
            raise ConfigError("a stop text is empty and would end every reply; write some text")


def check_threshold(threshold: float) -> None:
    """Check a threshold for P(silent).

    Raises:
        ConfigError: it is not a probability.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold}, wanted a probability, 0 to 1")


class Conversation:
    """Generates replies on a stream and rolls its window; a context manager that closes both."""

    _sink_name = "the system prompt and the standing instruction"

    def __init__(
        self,
        state: StreamState,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: KvPlan,
        options: SessionOptions,
        *,
        backend: str = "",
        model: LoadedModel | None = None,
    ) -> None:
        """A conversation on an empty stream.

        Args:
            state: the stream; closed with the session.
            config: the model's.
            tokenizer: the model's.
            plan: of the stream's cache.
            options: of the stream; for text alone those of frames have no effect.
            backend: the backend and why it was chosen, for people; default: the stream's name.
            model: closed with the session; None if it is shared.
        """
        self.state = state
        self.backend = backend or state.name
        self._model = model
        self.plan = plan
        self.options = options
        self.window = KvWindow(plan.capacity, evict_fraction=options.evict_fraction)
        self._stepper = Stepper(state, config, self.window, options.max_step_tokens)
        self.config = config
        self._tokenizer = tokenizer
        self._protocol = Protocol(config.stream_config, tokenizer, options.threshold)
        self._sampler = Sampler(options.sampling)
        self._must_cut = False
        self._started_s: float | None = None
        self._num_replies = self._num_reply_tokens = self._num_rolls = 0
        self._first_token_ms = Latencies()
        self._num_token_steps, self._token_steps_ms = 0, 0.0

    def __enter__(self: AnyConversation) -> AnyConversation:
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._model or nullcontext(), self.state:
            pass

    def cut_reply(self) -> None:
        """End the reply in progress after its present token, from any thread.

        The reply is closed as one that ends at its limit: what was said stays in the cache and the
        stream goes on. Without a reply in progress it does nothing.
        """
        self._must_cut = True

    def _reply(
        self, prompt: list[int], query: str | None, time_s: float, *, ends: Sequence[str] = ()
    ) -> Iterator[Event]:
        """Feed `prompt` and generate a reply.

        Args:
            prompt: ids, from the protocol.
            query: the query in it, None if the model speaks unasked.
            time_s: the time of the events.
            ends: texts at which the reply ends, beside those of the options.
        """
        started = time.perf_counter()
        self._must_cut = False
        logits = self._stepper.feed_text(prompt, continues=False)
        if self.window.sink_is_open:  # the standing instruction ends it
            self.window.close_sink()
        words = ReplyText(self._tokenizer, [*self.options.stop, *ends])
        stop_ids, ids = self._protocol.stop_ids, list[int]()
        token_id = self._sampler.choose(logits)
        first_token_ms = 1000 * (time.perf_counter() - started)
        self._first_token_ms.add(first_token_ms)
        tokens_ms, num_steps = 0.0, 0  # of the steps alone, without the caller's time in between
        cut_by = None
        while token_id not in stop_ids:
            ids.append(token_id)
            yield from self._take_rolls(time_s)
            yield TextEvent(time_s, words.add(token_id), token_id)
            cut_by = None if words.has_ended else self._cut_by(len(ids))
            if words.has_ended or cut_by:
                break
            started = time.perf_counter()
            token_id = self._sampler.choose(self._stepper.feed_text([token_id], continues=True))
            step_ms = 1000 * (time.perf_counter() - started)
            tokens_ms, num_steps = tokens_ms + step_ms, num_steps + 1
            self._token_steps_ms += step_ms  # at once: the reply may be stopped
            self._num_token_steps += 1
        if rest := words.finish():
            yield TextEvent(time_s, rest, ids[-1])
        ids = self._close_reply(ids, words.num_tokens, num_steps)
        yield from self._take_rolls(time_s)
        yield ReplyEvent(
            time_s=time_s,
            query=query,
            text=words.text().strip(),
            token_ids=ids,
            is_cut=cut_by is not None,
            first_token_ms=round(first_token_ms, 3),
            token_ms=round(tokens_ms / max(num_steps, 1), 3),
            cut_by=cut_by,
        )

    def _cut_by(self, num_tokens: int) -> CutBy | None:
        """What cuts a reply of `num_tokens` off, if anything does."""
        if num_tokens == self.options.max_new_tokens:
            return CutBy.LIMIT
        return CutBy.REQUEST if self._must_cut else None

    def _close_reply(self, ids: list[int], num_kept: int, num_fed: int) -> list[int]:
        """The reply's ids without those after its text, which are removed from the cache."""
        kept = ids[:num_kept]
        self.window.take_back_text(max(num_fed - num_kept, 0))
        self._protocol.note_reply([*kept[num_fed:], self.config.stream_config.eos_token_id])
        self._num_replies += 1
        self._num_reply_tokens += len(kept)
        return kept

    def _take_rolls(self, time_s: float) -> Iterator[Event]:
        for roll in self._stepper.rolls:
            self._num_rolls += 1
            dropped, total = roll.eviction.dropped.dense, roll.eviction.num_evicted
            yield RollEvent(time_s, dropped, total, round(roll.roll_ms, 3))
            if roll.sink_text is not None:
                num_sink_tokens = self.window.sink.dense
                yield InstructionEvent(time_s, roll.sink_text.instruction, num_sink_tokens)
        self._stepper.rolls.clear()

    def _cache_fill(self) -> float:
        length, capacity = self.window.length, self.window.capacity
        return max(length.dense / capacity.dense, length.mod / capacity.mod)

    def _check_reply(self, text: str, num_before: int, num_prompt_tokens: int, sink: Rows) -> None:
        """Check that a query and its reply fit beside the sink.

        Args:
            text: of the query.
            num_before: ids before the prompt that belong to its segment.
            num_prompt_tokens: of the query; 0 if it is in the sink.
            sink: rows that are never evicted.
        """
        limit = self.plan.capacity
        reply = num_before + num_prompt_tokens + self.options.max_new_tokens
        needed = sink.plus(Rows(reply, reply))
        if not needed.fits(limit):
            question = f", {num_prompt_tokens} of them the question" if num_prompt_tokens else ""
            raise ConfigError(
                f"a reply to {text[:40]!r} takes {reply} tokens{question}: with {self._sink_name} "
                f"that is {needed.dense} ({needed.mod} rows in MoD layers), the window has "
                f"{limit.dense} ({limit.mod}); raise --window or --kv-budget, shorten the queries, "
                "or lower --max-new-tokens"
            )
