r"""The streaming protocol of VideoLLM-online: ids to feed between frames, decisions from logits.

    <bos>{system}\n\n[FRAME,FRAME,...FRAME]\nUser: {query}\nAssistant: {reply}<eos>
    \n[FRAME,...FRAME]\nAssistant: {reply}<eos>\n[FRAME,...

At a frame's last token the model predicts either the interval (stay silent) or the end of the
frames (speak). A model without an interval (`frame_token_interval` is empty) has nothing between
two frames and predicts <eos> to stay silent; that token is not fed. Two rules differ from the
published code, which stops or drops a token: any other most likely token counts as silence
(undecided), and a reply cut off by its limit is closed with <eos>.

These are the strings of the default `ChatTemplate`; a checkpoint may have others. A conversation of
text alone has the same turns without the frames and their brackets:

    <bos>{system}\n\nUser: {query}\nAssistant: {reply}<eos>\nUser: {query}\nAssistant: {reply}<eos>
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from itertools import islice

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mod_edge.config import ChatTemplate, StreamConfig
from mod_edge.plan.chat import Part, control_ids_of, ids_of_parts, parts_of_string

# Text tokens that every window leaves room for, beside the system prompt and one reply: an
# instruction of a few sentences. Longer ones are rejected when they are asked.
QUERY_ALLOWANCE = 64
MAX_UNFED = 2  # ids at the end of a cut reply: its last token and <eos>


class Decision(str, Enum):
    """The model's decision at a frame."""

    SILENT = "silent"
    SPEAK = "speak"
    UNDECIDED = "undecided"  # neither of the two was the most likely token: treated as silent
    ASKED = "asked"  # a query was due at this frame, so the decision was not read


class Protocol:
    """The state of a conversation, from which the token ids to feed next follow."""

    def __init__(self, config: StreamConfig, tokenizer: Tokenizer, threshold: float) -> None:
        """A new conversation.

        Args:
            config: the checkpoint's strings and ids.
            tokenizer: the checkpoint's, with all control tokens of its chat template.
            threshold: speak when P(silent) is below this; 0..1. It may change between decisions.
        """
        self._config = config
        self._template = config.chat_template
        self._tokenizer = tokenizer
        self._control_ids = control_ids_of(config.chat_template, tokenizer)
        self.threshold = threshold
        self._has_begun = False
        self._in_frames = False  # whether the last thing fed was a frame
        self._unfed: list[int] = []  # the end of a reply, fed with the ids after it

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a reply; the end token is fed in place of each.

        They are the end token, the config's `stop_token_ids`, and the control token that opens the
        user's next turn, if one does.
        """
        begin = self._template.query.partition("{query}")[0]
        parts = parts_of_string(begin, self._control_ids)
        turn = (part for part in parts if isinstance(part, int))
        config = self._config
        return frozenset((config.eos_token_id, *config.stop_token_ids, *islice(turn, 1)))

    @property
    def next_turn(self) -> str | None:
        """The text at which a user's next turn would begin, where a reply of text alone ends.

        None if that turn begins with a control token, which is then one of `stop_ids`.
        """
        begin = self._template.query.partition("{query}")[0]
        has_control = any(token in begin for token in self._template.control_tokens)
        return None if has_control else begin.rstrip() or None

    def opening_ids(self) -> list[int]:
        """Ids before the first frame: <bos>, the system prompt and the start of the frames."""
        return self._opening(self._filled("stream_start"))

    def frame_prefix(self) -> list[int]:
        """Ids to feed right before the next frame; none between frames without an interval."""
        if not self._has_begun:
            return self.opening_ids()
        if self._in_frames:
            return list(self._config.interval_ids)
        return [*self._unfed, *self._encode(self._filled("stream_start"))]

    def longest_prefix(self) -> int:
        """Most ids before a frame in mid-stream: the end of a cut reply and a new bracket."""
        return MAX_UNFED + len(self._encode(self._filled("stream_start")))

    def response_prompt(self, query: str | None) -> list[int]:
        """Ids that prompt for a reply to `query`, or for an unasked one if None."""
        prompt = self._prompt(query)
        return [*self._unfed, *self._encode(self._closed(prompt) if self._in_frames else prompt)]

    def query_ids(self, query: str) -> list[int]:
        """Ids of a query's turn right after a frame, which is its longest form."""
        return self._encode(self._closed(self._prompt(query)))

    def text_prompt(self, query: str) -> list[int]:
        """Ids that prompt for a reply to `query` in a conversation of text alone.

        The first ones, before any `note_reply`, open the conversation with <bos> and the system
        prompt.
        """
        if not self._has_begun:
            return self.opening_prompt(query)
        return [*self._unfed, *self._encode(self._prompt(query))]

    def opening_prompt(self, query: str) -> list[int]:
        """Ids of a conversation that opens with `query`, before any frame."""
        return self._opening(self._prompt(query))

    def reply_ids(self, reply: str) -> list[int]:
        """Ids of a written reply after its prompt, with the end token: what a model learns."""
        said = self._filled("reply", reply=reply) if reply else []
        return [*self._continued(said), self._config.eos_token_id]

    def note_frame(self) -> None:
        """Record that a frame has been fed after its prefix."""
        self._has_begun = self._in_frames = True
        self._unfed = []

    def note_reply(self, unfed: Sequence[int]) -> None:
        """Record a generated reply; `unfed` are its ids that are not in the cache yet."""
        self._has_begun, self._in_frames = True, False
        self._unfed = list(unfed)

    def decide(self, logits: npt.NDArray[np.float32]) -> Decision:
        """The decision from the logits (V,) at a frame's last token."""
        silent_id, speak_id = self._config.silent_id, self._config.stream_end_id
        chosen = int(logits.argmax())
        if chosen == silent_id and self.threshold > 0:
            probability = 1 / np.exp(logits - logits[silent_id]).sum(dtype=np.float64)
            if probability < self.threshold:
                others = logits.copy()
                others[silent_id] = -np.inf
                chosen = int(others.argmax())
        if chosen == speak_id:
            return Decision.SPEAK
        return Decision.SILENT if chosen == silent_id else Decision.UNDECIDED

    def _opening(self, parts: list[Part]) -> list[int]:
        """Ids of <bos>, if any, and the system turn with `parts` after it."""
        bos = self._config.bos_token_id
        system = self._filled("system", system=self._config.system_prompt)
        return [*([] if bos is None else [bos]), *self._encode(system + parts)]

    def _prompt(self, query: str | None) -> list[Part]:
        question = [] if query is None else self._filled("query", query=query)
        return question + self._filled("generation")

    def _closed(self, parts: list[Part]) -> list[Part]:
        """`parts` after the end of the frames, whose line break may be that of `parts`."""
        end = self._config.stream_end
        if isinstance(parts[0], str) and parts[0].startswith("\n"):
            end = end.removesuffix("\n")
        return [end, *parts]

    def _filled(self, name: str, **written: str) -> list[Part]:
        return parts_of_string(getattr(self._template, name), self._control_ids, **written)

    def _continued(self, said: list[Part]) -> list[int]:
        """Ids of `said` as the prompt's text goes on with it.

        Encoded alone, a text may get a dummy space (Llama 2), which no reply has.
        """
        before = self._filled("generation")[-1:]
        prefix, ids = self._encode(before), self._encode(before + said)
        # A token across the border would be no continuation of what has been fed.
        return ids[len(prefix) :] if ids[: len(prefix)] == prefix else self._encode(said)

    def _encode(self, parts: list[Part]) -> list[int]:
        return ids_of_parts(self._tokenizer, parts)


def text_minimum(config: StreamConfig, tokenizer: Tokenizer, max_new_tokens: int) -> int:
    """Text tokens that every window must hold: system prompt, instruction and one reply."""
    protocol = Protocol(config, tokenizer, threshold=0)
    plain = Protocol(replace(config, chat_template=ChatTemplate()), tokenizer, threshold=0)
    # The allowance counts the default template's strings around an instruction.
    more = max(0, len(protocol.query_ids("")) - len(plain.query_ids("")))
    return len(protocol.opening_ids()) + QUERY_ALLOWANCE + more + max_new_tokens
