"""Training batches: a data set's streams, cropped and padded to one length.

A clip's stream is the flat list of the token ids that the runtime feeds (`dialogue`). A crop starts
either at the beginning of the stream, or like a stream whose window has rolled: the sink (the
opening; with a standing instruction also the first frame and the instruction), then the tokens from
some later segment on, at contiguous positions. Segments are the runtime's (`Stepper`): a frame with
the text before it, or a reply without its end token, which is fed with the next frame.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mod_edge.config import StreamConfig
from mod_edge.data.clips import Clip
from mod_edge.data.dialogue import Piece, Shown, dialogue_of_clip, pieces_of_dialogue
from mod_edge.errors import DataError
from mod_edge.plan.protocol import Decision
from mod_edge.training.features import FrameFeatures
from mod_edge.training.recipe import TrainConfig

NO_LABEL = -1
# A rolled crop starts where at least this share of `max_frames` follows: late frames are trained on
# as often as others, and crops stay long compared with their sink.
LEAST_FILL = 0.5
# The crops of this many batches are sorted by length, then cut into batches.
NUM_BATCHES_SORTED = 16
# The CPU's matrix library compiles and keeps code for every new shape of a product: with any number
# of rows, memory grew to 7.7 GB in 500 steps of a 3M model, and steps took 2.3 instead of 1.7 s.
ROWS_ROUNDED = 64

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Stream:
    """A clip's whole stream of T tokens, flat.

    Attributes:
        token_ids: (T,) int32; 0 in frames.
        labels: (T,) int32, the token to predict at each row, `NO_LABEL` for none.
        frame_starts: (F,) int32, the row of each frame's first token.
        segment_starts: (segments,) int32, rising, without the segments in the sink.
        sink: number of rows in the sink.
    """

    token_ids: Int32Array
    labels: Int32Array
    frame_starts: Int32Array
    segment_starts: Int32Array
    sink: int

    @property
    def num_sink_frames(self) -> int:
        """Frames in the sink: one with a standing instruction, else none."""
        return int((self.frame_starts < self.sink).sum())

    def rolled_starts(self, max_frames: int) -> Int32Array:
        """Segments at which a crop of `max_frames` may continue after the sink."""
        num_following = len(self.frame_starts) - np.searchsorted(
            self.frame_starts, self.segment_starts
        )
        is_enough = num_following >= LEAST_FILL * (max_frames - self.num_sink_frames)
        return self.segment_starts[is_enough & (self.segment_starts > self.sink)]

    def crop(self, start: int, max_frames: int) -> "Crop":
        """The sink and the rows from `start` on: `max_frames` frames at most."""
        num_before = int(np.searchsorted(self.frame_starts, start))
        first_left_out = num_before + max_frames - self.num_sink_frames
        end = len(self.token_ids)
        if first_left_out < len(self.frame_starts):  # cut before that frame's segment
            segment = np.searchsorted(
                self.segment_starts, self.frame_starts[first_left_out], side="right"
            )
            end = int(self.segment_starts[segment - 1])
        return Crop(self, start, end)


@dataclass(frozen=True)
class Crop:
    """A stream's sink and its rows from `start` (the sink's end or later) to `end`."""

    stream: Stream
    start: int
    end: int

    @property
    def is_rolled(self) -> bool:
        """Whether rows after the sink are left out."""
        return self.start > self.stream.sink

    @property
    def rows(self) -> IntArray:
        """(tokens,) rows of the stream."""
        return np.r_[0 : self.stream.sink, self.start : self.end]

    @property
    def num_tokens(self) -> int:
        """The number of rows."""
        return self.stream.sink + self.end - self.start

    def frames(self) -> tuple[IntArray, IntArray]:
        """The indices of the crop's frames in the stream, and each one's first row in the crop."""
        starts, sink = self.stream.frame_starts.astype(np.int64), self.stream.sink
        is_shown = (starts < sink) | ((starts >= self.start) & (starts < self.end))
        shown = np.flatnonzero(is_shown)
        return shown, starts[shown] - np.where(starts[shown] < sink, 0, self.start - sink)


@dataclass(frozen=True)
class Batch:
    """B crops, padded on the right to T rows; row numbers index the flattened (B*T) rows.

    Attributes:
        token_ids: (B, T) int64; 0 in frames and padding.
        is_text: (B, T) bool; neither frame nor padding.
        frame_index: (F, N) int64, rows of all frames' tokens.
        frames: (F,) int64, each frame's index among the frames of all clips.
        features: (F, N, Dv) float16, of these frames.
        label_rows: (L,) int64.
        labels: (L,) int64.
        is_stream: (L,) bool, True for a decision at a frame's last token, False for a reply token.
    """

    token_ids: Tensor
    is_text: Tensor
    frame_index: Tensor
    frames: Tensor
    features: Tensor
    label_rows: Tensor
    labels: Tensor
    is_stream: Tensor

    @property
    def num_positions(self) -> int:
        """T."""
        return self.token_ids.shape[1]

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class Batches:
    """The batches of a split; each is a pure function of the seed and the batch's number."""

    def __init__(
        self, streams: Sequence[Stream], features: FrameFeatures, settings: TrainConfig
    ) -> None:
        """Batches of `streams`, one per clip, with the clips' `features` in the same order.

        Raises:
            DataError: fewer clips than `batch_clips`.
        """
        check_fills_a_batch("the split", len(streams), settings)
        self._streams, self._features = streams, features
        self._settings = settings
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def __getitem__(self, number: int) -> Batch:
        """The batch with this number, 0 or more, without an upper limit."""
        epoch, place = divmod(number, len(self._streams) // self._settings.batch_clips)
        return self._assemble(self._epoch(epoch)[place])

    def _plan_epoch(self, epoch: int) -> list[list[tuple[int, Crop]]]:
        """Batches of crops of similar length; every clip once, without an incomplete last batch."""
        rng = np.random.default_rng((self._settings.seed, epoch))
        size = self._settings.batch_clips
        order = rng.permutation(len(self._streams))
        crops = [
            (int(clip), self._crop(self._streams[clip], rng))
            for clip in order[: len(order) // size * size]
        ]
        batches = []
        for first in range(0, len(crops), size * NUM_BATCHES_SORTED):
            alike = sorted(
                crops[first : first + size * NUM_BATCHES_SORTED],
                key=lambda clip_and_crop: clip_and_crop[1].num_tokens,
            )
            batches += [alike[start : start + size] for start in range(0, len(alike), size)]
        return [batches[number] for number in rng.permutation(len(batches))]

    def _crop(self, stream: Stream, rng: np.random.Generator) -> Crop:
        is_rolled, place = rng.random() < self._settings.roll_ratio, rng.random()
        starts = stream.rolled_starts(self._settings.max_frames) if is_rolled else ()
        start = int(starts[int(place * len(starts))]) if len(starts) else stream.sink
        return stream.crop(start, self._settings.max_frames)

    def _assemble(self, crops: list[tuple[int, Crop]]) -> Batch:
        length = round_up(max(crop.num_tokens for _, crop in crops))
        token_ids = np.zeros((len(crops), length), np.int64)
        labels = np.full((len(crops), length), NO_LABEL, np.int64)
        is_text = np.zeros((len(crops), length), bool)
        first_rows, frames = [], []
        for number, (clip, crop) in enumerate(crops):
            rows = crop.rows
            token_ids[number, : len(rows)] = crop.stream.token_ids[rows]
            labels[number, : len(rows)] = crop.stream.labels[rows]
            is_text[number, : len(rows)] = True
            if crop.is_rolled:  # the reply to the instruction no longer follows the sink
                labels[number, : crop.stream.sink] = NO_LABEL
            shown, starts = crop.frames()
            first_rows.append(starts + number * length)
            frames.append(shown + self._features.first_frames[clip])
        frame_tokens = np.arange(self._features.frame_num_tokens)
        frame_index = np.concatenate(first_rows)[:, None] + frame_tokens
        is_text.reshape(-1)[frame_index] = False
        label_rows = np.flatnonzero(labels != NO_LABEL)
        shown_frames = np.concatenate(frames)
        return Batch(
            token_ids=torch.from_numpy(token_ids),
            is_text=torch.from_numpy(is_text),
            frame_index=torch.from_numpy(frame_index),
            frames=torch.from_numpy(shown_frames),
            features=torch.from_numpy(self._features.tokens[shown_frames]),
            label_rows=torch.from_numpy(label_rows),
            labels=torch.from_numpy(labels.reshape(-1)[label_rows]),
            is_stream=torch.from_numpy(~is_text.reshape(-1)[label_rows]),
        )


def check_fills_a_batch(split: str, num_clips: int, settings: TrainConfig) -> None:
    """Check that a split has at least `batch_clips` clips.

    Raises:
        DataError: `split` has fewer.
    """
    if num_clips < settings.batch_clips:
        raise DataError(
            f"{split} has {num_clips} clips, batch_clips={settings.batch_clips}; "
            "lower batch_clips or add clips"
        )


def round_up(num_rows: int) -> int:
    """The next multiple of `ROWS_ROUNDED`."""
    return -(-num_rows // ROWS_ROUNDED) * ROWS_ROUNDED


def streams_of_clips(
    clips: Iterable[Clip], features: FrameFeatures, config: StreamConfig, tokenizer: Tokenizer
) -> list[Stream]:
    """Each clip's whole stream, for the frames that were read from its video."""
    streams = []
    for clip, num_frames in zip(clips, features.num_frames, strict=True):
        dialogue = dialogue_of_clip(clip, config.frame_fps, int(num_frames))
        pieces = pieces_of_dialogue(dialogue, config, tokenizer)
        streams.append(stream_of_pieces(list(pieces), config, features.frame_num_tokens))
    return streams


def stream_of_pieces(pieces: Sequence[Piece], config: StreamConfig, num_tokens: int) -> Stream:
    """The flat stream of `pieces`; `num_tokens` is N, the tokens of one frame."""
    decided = {
        Decision.SILENT: config.silent_id,
        Decision.SPEAK: config.stream_end_id,
        None: NO_LABEL,
    }
    token_ids: list[int] = []
    labels: list[int] = []
    frame_starts: list[int] = []
    segment_starts: list[int] = []
    sink = segment_start = 0
    after_reply = is_asked = False
    for piece in pieces:
        row = len(token_ids)
        if isinstance(piece, Shown):
            frame_starts.append(row)
            segment_starts.append(segment_start)
            token_ids += [0] * num_tokens
            labels += [NO_LABEL] * (num_tokens - 1) + [decided[piece.decision]]
            after_reply, is_asked = False, piece.decision is None
            continue
        token_ids += piece.ids
        labels += [NO_LABEL] * len(piece.ids)
        if piece.num_learned:  # a reply after its prompt
            learned_start = len(token_ids) - piece.num_learned
            labels[learned_start - 1 : -1] = token_ids[learned_start:]
            is_standing = is_asked and len(frame_starts) == 1
            if is_standing:  # the sink holds all before the reply
                segment_starts, sink = [], learned_start
            if not is_standing or piece.num_learned > 1:  # an end token alone is not a segment
                segment_starts.append(learned_start if is_standing else row)
            after_reply = True
        elif frame_starts:  # the text before a frame, after a reply's end token
            segment_start = row - after_reply
        else:
            segment_start = sink = len(token_ids)
    return Stream(
        np.array(token_ids, np.int32),
        np.array(labels, np.int32),
        np.array(frame_starts, np.int32),
        np.array(segment_starts, np.int32),
        sink,
    )
