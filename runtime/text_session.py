"""A conversation of text alone, without video: queries in, replies out."""

import time
from collections.abc import Iterator, Sequence

from mod_edge.errors import ConfigError
from mod_edge.plan.kv_window import NO_ROWS, Rows
from mod_edge.plan.protocol import MAX_UNFED, Protocol
from mod_edge.runtime.conversation import Conversation
from mod_edge.runtime.events import Event, QueryEvent, TextSummary
from mod_edge.runtime.queries import Query


class TextSession(Conversation):
    """Replies to queries, turn by turn.

    `open_text_session` makes one from a bundle. The system prompt and the first query are never
    evicted. A reply ends with the end token, where the user's next turn would begin, at a
    stop text, or at its limit.
    """

    _sink_name = "the system prompt and the first query"
    _is_replying = False

    def converse(self, queries: Sequence[str]) -> Iterator[Event]:
        """Reply to one query after the other, yielding events as they happen.

        Their times are seconds since the first query. Call it again, after its last event, to go on
        with the conversation.

        Args:
            queries: texts; all are checked before the first reply.

        Raises:
            ConfigError: a query is empty, is not Unicode text or does not fit in the window, or the
                last reply was not read to its end; raised at the first event.
        """
        if self._is_replying:
            raise ConfigError("the last reply was not read to its end; open a new session")
        self._check_queries(queries)
        self._started_s = self._started_s or time.perf_counter()
        for query in queries:
            self._is_replying = True
            time_s = round(time.perf_counter() - self._started_s, 3)
            yield QueryEvent(time_s, query, time_s)
            prompt, next_turn = self._protocol.text_prompt(query), self._protocol.next_turn
            ends = [] if next_turn is None else [next_turn]
            yield from self._reply(prompt, query, time_s, ends=ends)
            self._is_replying = False

    def summary(self) -> TextSummary:
        """Totals so far."""
        wall_s = time.perf_counter() - self._started_s if self._started_s else 0.0
        seconds = self._token_steps_ms / 1000
        return TextSummary(
            time_s=round(wall_s, 3),
            num_replies=self._num_replies,
            num_reply_tokens=self._num_reply_tokens,
            num_rolls=self._num_rolls,
            num_tokens=self.window.num_tokens,
            num_evicted=self.window.num_evicted,
            first_token_ms=self._first_token_ms.percentiles(),
            tokens_per_s=round(self._num_token_steps / seconds, 2) if seconds else 0.0,
            cache_fill=round(self._cache_fill(), 4),
            backend=self.backend,
            warnings=list(self.state.warnings),
        )

    def _check_queries(self, queries: Sequence[str]) -> None:
        """Check that each query is text, and that each reply will fit beside the sink."""
        stream = self.config.stream_config
        later = Protocol(stream, self._tokenizer, threshold=0)
        later.note_reply(())
        sink = NO_ROWS if self.window.sink_is_open else self.window.sink
        for query in queries:
            Query(query)
            if sink == NO_ROWS:
                num_opening = len(self._protocol.text_prompt(query))
                sink = Rows(num_opening, num_opening)
                self._check_reply(query, 0, 0, sink)
            else:
                self._check_reply(query, MAX_UNFED, len(later.text_prompt(query)), sink)
