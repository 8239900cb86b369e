r"""The streaming protocol of VideoLLM-online: ids to feed between frames, decisions from logits.

    <bos>{system}\n\n[FRAME,FRAME,...FRAME]\nUser: {query}\nAssistant: {reply}<eos>
    \n[FRAME,...FRAME]\nAssistant: {reply}<eos>\n[FRAME,...

At a frame's last token the model predicts either the interval (stay silent) or the end of the
frames (speak). A model without an interval (`frame_token_interval` is empty) has nothing between
two frames and predicts <eos> to stay silent; that token is not fed. Two rules differ from the
published code, which stops or drops a token: any other most likely token counts as silence
(undecided), and a reply cut off by its limit is closed with <eos>.
"""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mod_edge.config import StreamConfig
from mod_edge.plan.tokenizer import text_ids

SYSTEM_END = "\n"
STREAM_START = "\n["
QUERY = "\nUser: {query}"
GENERATION = "\nAssistant:"
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
            tokenizer: the checkpoint's.
            threshold: speak when P(silent) is below this; 0..1.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._threshold = threshold
        self._has_begun = False
        self._in_frames = False  # whether the last thing fed was a frame
        self._unfed: list[int] = []  # the end of a reply, fed with the ids after it

    def opening_ids(self) -> list[int]:
        """Ids before the first frame: <bos>, the system prompt and the start of the frames."""
        text = self._config.system_prompt + SYSTEM_END + STREAM_START
        return [self._config.bos_token_id, *self._encode(text)]

    def frame_prefix(self) -> list[int]:
        """Ids to feed right before the next frame; none between frames without an interval."""
        if not self._has_begun:
            return self.opening_ids()
        if self._in_frames:
            return list(self._config.interval_ids)
        return [*self._unfed, *self._encode(STREAM_START)]

    def longest_prefix(self) -> int:
        """Most ids before a frame in mid-stream: the end of a cut reply and a new bracket."""
        return MAX_UNFED + len(self._encode(STREAM_START))

    def response_prompt(self, query: str | None) -> list[int]:
        """Ids that prompt for a reply to `query`, or for an unasked one if None."""
        end = self._config.stream_end.removesuffix("\n") if self._in_frames else ""
        question = "" if query is None else QUERY.format(query=query)
        return [*self._unfed, *self._encode(end + question + GENERATION)]

    def query_ids(self, query: str) -> list[int]:
        """Ids of a query asked between frames, to check its length beforehand."""
        end = self._config.stream_end.removesuffix("\n")
        return self._encode(end + QUERY.format(query=query) + GENERATION)

    def note_frame(self) -> None:
        """Record that a frame has been fed after its prefix."""
        self._has_begun = self._in_frames = True
        self._unfed = []

    def note_reply(self, unfed: Sequence[int]) -> None:
        """Record a generated reply; `unfed` are its ids that are not in the cache yet."""
        self._in_frames = False
        self._unfed = list(unfed)

    def decide(self, logits: npt.NDArray[np.float32]) -> Decision:
        """The decision from the logits (V,) at a frame's last token."""
        silent_id, speak_id = self._config.silent_id, self._config.stream_end_id
        chosen = int(logits.argmax())
        if chosen == silent_id and self._threshold > 0:
            probability = 1 / np.exp(logits - logits[silent_id]).sum(dtype=np.float64)
            if probability < self._threshold:
                others = logits.copy()
                others[silent_id] = -np.inf
                chosen = int(others.argmax())
        if chosen == speak_id:
            return Decision.SPEAK
        return Decision.SILENT if chosen == silent_id else Decision.UNDECIDED

    def _encode(self, text: str) -> list[int]:
        return text_ids(self._tokenizer, text)


def text_minimum(config: StreamConfig, tokenizer: Tokenizer, max_new_tokens: int) -> int:
    """Text tokens that every window must hold: system prompt, instruction and one reply."""
    opening = Protocol(config, tokenizer, threshold=0).opening_ids()
    return len(opening) + QUERY_ALLOWANCE + max_new_tokens
