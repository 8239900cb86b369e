"""Aligns a clip's conversation with its frames, and makes the token stream that the runtime feeds.

Captions' times are rounded up to the frame grid, so that nothing is said before it can be seen;
queries' times down, because a session answers before it takes another frame. The labels are
VideoLLM-online's: silence or speech at each frame's last token, except before a query (streaming
loss), and each reply's tokens with the end token (LM loss). The ids come from the runtime's
`Protocol`, so that training and streaming always agree.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from mod_edge.config import StreamConfig
from mod_edge.data.clips import Clip, Line
from mod_edge.plan.protocol import Decision, Protocol

ROUNDING_S = 1e-3  # a time of 4.5000001 s belongs to the frame at 4.5 s


@dataclass(frozen=True)
class Turn:
    """The frames since the last turn, and the reply that follows them.

    Attributes:
        first_frame: index of the first of these frames.
        num_frames: at least 1.
        query: the question; None if the model speaks by itself.
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
        """Index of the frame before the reply."""
        return self.first_frame + self.num_frames - 1


@dataclass(frozen=True)
class Dialogue:
    """The turns of a clip of `num_frames` frames; frames after the last turn are silent."""

    turns: tuple[Turn, ...]
    num_frames: int


@dataclass(frozen=True)
class Text:
    """Text tokens to feed; the last `num_learned` are the model's reply and the end token.

    Between two frames of a model without an interval token there are none.
    """

    ids: tuple[int, ...]
    num_learned: int = 0


@dataclass(frozen=True)
class Shown:
    """A frame to feed, and the true decision at its last token; None before a query."""

    frame: int
    decision: Decision | None


Piece = Text | Shown


def dialogue_of_clip(clip: Clip, fps: float, num_frames: int) -> Dialogue:
    """The clip's conversation as turns.

    At most one reply follows each frame: a second one moves to the next frame, and is dropped if
    there is no frame left. A query without an answer at its frame gets an empty one.

    Args:
        clip: with times in seconds.
        fps: frames/s of the stream.
        num_frames: number of frames of the video at that rate.
    """
    turns: list[Turn] = []
    next_frame = 0
    for time_s, query, answer in _exchanges(clip, fps):
        if query is None:  # said at the first frame that can show it
            frame = math.ceil((time_s - ROUNDING_S) * fps)
        else:  # answered before any later frame
            frame = math.floor((time_s + ROUNDING_S) * fps)
        last = max(frame, next_frame)
        if last < num_frames:
            said = (answer.content, answer.kind, answer.keys) if answer else ("",)
            turns.append(Turn(next_frame, last + 1 - next_frame, query, *said))
            next_frame = last + 1
    return Dialogue(tuple(turns), num_frames)


def _exchanges(clip: Clip, fps: float) -> Iterator[tuple[float, str | None, Line | None]]:
    """Time, query (if any) and reply, which is None for a query without an answer at its frame."""
    lines = deque(clip.conversation)
    while lines:
        line = lines.popleft()
        if line.role == "assistant":
            yield line.time_s, None, line
        elif lines and lines[0].role == "assistant" and lines[0].time_s - line.time_s < 1 / fps:
            yield line.time_s, line.content, lines.popleft()
        else:
            yield line.time_s, line.content, None


class Script:
    """Converts a dialogue to pieces, step by step, as a session would feed them."""

    def __init__(self, config: StreamConfig, tokenizer: Tokenizer) -> None:
        """The script of a new stream."""
        self._protocol = Protocol(config, tokenizer, threshold=0)

    def frames(self, turn: Turn) -> Iterator[Piece]:
        """The turn's frames, each after its prefix; a reply or a query follows the last one."""
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
        """Prompt, reply and end token, which the runtime feeds with the next frame."""
        prompt = self._protocol.response_prompt(turn.query)
        learned = self._protocol.reply_ids(turn.reply)
        self._protocol.note_reply([])
        return Text((*prompt, *learned), len(learned))

    def _frame(self, frame: int, decision: Decision | None) -> Iterator[Piece]:
        yield Text(tuple(self._protocol.frame_prefix()))
        self._protocol.note_frame()
        yield Shown(frame, decision)


def pieces_of_dialogue(
    dialogue: Dialogue, config: StreamConfig, tokenizer: Tokenizer
) -> Iterator[Piece]:
    """All pieces of a dialogue's stream."""
    script = Script(config, tokenizer)
    next_frame = 0
    for turn in dialogue.turns:
        yield from script.frames(turn)
        yield script.reply(turn)
        next_frame = turn.last_frame + 1
    yield from script.silence(next_frame, dialogue.num_frames - next_frame)
