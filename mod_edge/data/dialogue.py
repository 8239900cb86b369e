"""A clip's conversation laid over its frames, and the very token stream that the runtime feeds.

Captions' times are rounded up to the frame grid, so that nothing is said before it can be seen;
queries' times down, because a session answers before it watches another frame. What the model is
taught is VideoLLM-online's: silence or speech at each frame's last token, nothing where it was
asked (streaming loss), and each reply's tokens with the end token (LM loss). The ids come from the
runtime's own `Protocol`: training and streaming cannot part.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from mod_edge.config import StreamConfig
from mod_edge.data.clips import Clip, Line
from mod_edge.plan.protocol import Decision, Protocol

ROUNDING_S = 1e-3  # a time of 4.5000001 s belongs to the frame at 4.5 s


@dataclass(frozen=True)
class Turn:
    """Frames shown since the turn before, and the reply that follows the last of them.

    Attributes:
        first_frame: index of the first of these frames.
        num_frames: at least 1.
        query: what is answered; None where the model speaks by itself.
        reply: what it should say, maybe nothing.
        kind, keys: see `clips`.
    """

    first_frame: int
    num_frames: int
    query: str | None
    reply: str
    kind: str = ""
    keys: tuple[str, ...] = ()

    @property
    def last_frame(self) -> int:
        """Index of the frame after which the reply comes."""
        return self.first_frame + self.num_frames - 1


@dataclass(frozen=True)
class Dialogue:
    """The turns of a clip of `num_frames` frames; frames behind the last turn are silent."""

    turns: tuple[Turn, ...]
    num_frames: int


@dataclass(frozen=True)
class Text:
    """Text tokens to feed; the last `num_learned` are the model's own words (and the end token)."""

    ids: tuple[int, ...]
    num_learned: int = 0


@dataclass(frozen=True)
class Shown:
    """A frame to feed, and the decision to be made at its last token, None where none is."""

    frame: int
    decision: Decision | None


Piece = Text | Shown


def dialogue_of_clip(clip: Clip, fps: float, num_frames: int) -> Dialogue:
    """The clip's conversation in turns.

    One reply follows a frame: what falls on a taken frame comes one frame later, and what then
    finds no frame any more is left out. A query without an answer at its frame gets an empty one.

    Args:
        clip: with times in seconds.
        fps: frames/s of the stream.
        num_frames: that the video gives at that rate.
    """
    turns: list[Turn] = []
    next_frame = 0
    for time_s, query, answer in _exchanges(clip, fps):
        if query is None:  # said at the first frame that can show it
            frame = math.ceil((time_s - ROUNDING_S) * fps)
        else:  # answered before any later frame is seen
            frame = math.floor((time_s + ROUNDING_S) * fps)
        last = max(frame, next_frame)
        if last < num_frames:
            said = (answer.content, answer.kind, answer.keys) if answer else ("",)
            turns.append(Turn(next_frame, last + 1 - next_frame, query, *said))
            next_frame = last + 1
    return Dialogue(tuple(turns), num_frames)


def _exchanges(clip: Clip, fps: float) -> Iterator[tuple[float, str | None, Line | None]]:
    """Time, query if any, and what is said: nothing where a query has no answer at its frame."""
    lines = list(clip.conversation)
    while lines:
        line = lines.pop(0)
        if line.role == "assistant":
            yield line.time_s, None, line
        elif lines and lines[0].role == "assistant" and lines[0].time_s - line.time_s < 1 / fps:
            yield line.time_s, line.content, lines.pop(0)
        else:
            yield line.time_s, line.content, None


class Script:
    """Turns a dialogue into pieces, step by step, as a session would feed them."""

    def __init__(self, config: StreamConfig, tokenizer: Tokenizer) -> None:
        """A stream that has not begun."""
        self._config = config
        self._tokenizer = tokenizer
        self._protocol = Protocol(config, tokenizer, threshold=0)

    def frames(self, turn: Turn) -> Iterator[Piece]:
        """The turn's frames, each behind its prefix; the last one speaks, or is asked."""
        for frame in range(turn.first_frame, turn.last_frame + 1):
            decision: Decision | None = Decision.SILENT
            if frame == turn.last_frame:
                decision = Decision.SPEAK if turn.query is None else None
            yield from self._frame(frame, decision)

    def silence(self, first_frame: int, num_frames: int) -> Iterator[Piece]:
        """Frames at which nothing is said."""
        for frame in range(first_frame, first_frame + num_frames):
            yield from self._frame(frame, Decision.SILENT)

    def reply(self, turn: Turn) -> Text:
        """The prompt, the reply and the end token. The runtime feeds the last with what follows."""
        prompt = self._protocol.response_prompt(turn.query)
        words = f" {turn.reply}" if turn.reply else ""
        ids = self._tokenizer.encode(words, add_special_tokens=False).ids
        learned = [*ids, self._config.eos_token_id]
        self._protocol.note_reply([])
        return Text((*prompt, *learned), len(learned))

    def _frame(self, frame: int, decision: Decision | None) -> Iterator[Piece]:
        yield Text(tuple(self._protocol.frame_prefix()))
        self._protocol.note_frame()
        yield Shown(frame, decision)


def pieces_of_dialogue(
    dialogue: Dialogue, config: StreamConfig, tokenizer: Tokenizer
) -> Iterator[Piece]:
    """The whole stream of a dialogue."""
    script = Script(config, tokenizer)
    next_frame = 0
    for turn in dialogue.turns:
        yield from script.frames(turn)
        yield script.reply(turn)
        next_frame = turn.last_frame + 1
    yield from script.silence(next_frame, dialogue.num_frames - next_frame)
