"""Streams, crops and batches have the tokens, frames and segments of a session."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mod_edge.config import read_config
from mod_edge.data.clips import Clip, Line
from mod_edge.data.dialogue import dialogue_of_clip, pieces_of_dialogue
from mod_edge.errors import DataError
from mod_edge.training.batches import NO_LABEL, Batches, stream_of_pieces, streams_of_clips
from mod_edge.training.features import FrameFeatures
from mod_edge.training.recipe import TrainConfig
from tests.data.test_dialogue import run_scripted_session
from tests.frame_layouts import one_token

pytestmark = pytest.mark.numeric

NUM_FRAMES = 12
NARRATE = Line("user", "Please narrate the video in real time.", 0.0)
CONVERSATIONS = {
    "instruction": (
        NARRATE,
        Line("assistant", "A man walks on the path.", 0.0),
        Line("assistant", "Two people wait.", 1.5),
        Line("user", "What happens?", 3.0),
        Line("assistant", "A child stops.", 3.0),
        Line("assistant", "The group leaves.", 3.5),
    ),
    "instruction without a reply": (NARRATE, Line("assistant", "Two people wait.", 1.5)),
    "no instruction": (
        Line("assistant", "A man walks on the path.", 0.0),
        Line("user", "What happens?", 3.0),
        Line("assistant", "A child stops.", 3.0),
    ),
    "nothing": (),
}
SETTINGS = TrainConfig(
    trainable=("model",), steps=1, batch_clips=3, max_frames=5, learning_rate=1e-3
)


@pytest.fixture(scope="module", params=["interval", "one token, no interval"])
def config(tiny_checkpoint, request):
    config = read_config(tiny_checkpoint / "config.json")
    if request.param == "interval":
        return config
    return one_token(config)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))


def clip_of(lines, uid="a"):
    return Clip(uid, Path("a.mp4"), 30.0, tuple(lines))


def pieces_of(lines, config, tokenizer, num_frames=NUM_FRAMES):
    dialogue = dialogue_of_clip(clip_of(lines), config.stream_config.frame_fps, num_frames)
    return list(pieces_of_dialogue(dialogue, config.stream_config, tokenizer))


@pytest.fixture(params=CONVERSATIONS)
def lines(request):
    return CONVERSATIONS[request.param]


@pytest.fixture
def stream(lines, config, tokenizer):
    return stream_of_pieces(
        pieces_of(lines, config, tokenizer), config.stream_config, config.frame_num_tokens
    )


@pytest.fixture
def window(lines, config, tokenizer):
    """The window of a session that ran the whole conversation."""
    pieces = pieces_of(lines, config, tokenizer)
    session, _ = run_scripted_session(pieces, lines, config, tokenizer)
    return session.window


def test_segments_equal_those_of_a_sessions_window(stream, window):
    assert stream.sink == window.sink.dense
    lengths = [rows.dense for rows in window._segments]
    assert stream.segment_starts.tolist() == (stream.sink + np.cumsum([0, *lengths[:-1]])).tolist()
    assert stream.segment_starts[-1] + lengths[-1] == len(stream.token_ids)


def test_labels_of_a_reply_are_its_tokens_and_the_end_token(config, tokenizer):
    lines = [Line("assistant", "A man walks.", 0.0)]
    pieces = pieces_of(lines, config, tokenizer, num_frames=1)
    stream = stream_of_pieces(pieces, config.stream_config, config.frame_num_tokens)
    ids, labels = stream.token_ids, stream.labels
    (rows,) = np.nonzero(labels != NO_LABEL)
    decision, *words = rows
    assert decision == stream.frame_starts[0] + config.frame_num_tokens - 1
    assert labels[decision] == config.stream_config.stream_end_id
    assert words == list(range(words[0], len(ids) - 1))
    assert labels[words].tolist() == ids[words[0] + 1 :].tolist()
    assert tokenizer.decode(labels[words][:-1].tolist()) == " A man walks."
    assert labels[words][-1] == config.stream_config.eos_token_id


def test_silent_frames_are_labelled_and_frames_before_a_query_are_not(config, tokenizer):
    pieces = pieces_of(CONVERSATIONS["instruction"], config, tokenizer)
    stream = stream_of_pieces(pieces, config.stream_config, config.frame_num_tokens)
    ends = stream.frame_starts + config.frame_num_tokens - 1
    silent, speak = config.stream_config.silent_id, config.stream_config.stream_end_id
    spoken = {3: speak, 7: speak, 0: NO_LABEL, 6: NO_LABEL}
    wanted = [spoken.get(frame, silent) for frame in range(NUM_FRAMES)]
    assert stream.labels[ends].tolist() == wanted


def test_a_crop_from_the_sinks_end_starts_like_the_stream(stream):
    crop = stream.crop(stream.sink, max_frames=5)
    assert not crop.is_rolled
    assert crop.rows.tolist() == list(range(crop.end))
    assert crop.end in [*stream.segment_starts, len(stream.token_ids)]
    assert len(crop.frames()[0]) == 5


def test_a_crop_longer_than_the_stream_is_the_stream(stream):
    assert stream.crop(stream.sink, max_frames=99).rows.tolist() == list(
        range(len(stream.token_ids))
    )


def test_a_rolled_crop_is_the_sink_and_later_segments(stream):
    starts = stream.rolled_starts(max_frames=6)
    assert len(starts) > 3
    for start in starts:
        crop = stream.crop(int(start), max_frames=6)
        assert crop.is_rolled
        assert start in stream.segment_starts
        assert crop.rows.tolist() == [*range(stream.sink), *range(start, crop.end)]
        frames, rows = crop.frames()
        assert 3 <= len(frames) <= 6
        assert crop.rows[rows].tolist() == stream.frame_starts[frames].tolist()


def many_streams(config, tokenizer, num_clips=20):
    rng = np.random.default_rng(1)
    clips = []
    for number in range(num_clips):
        times = sorted(rng.choice(16, size=rng.integers(1, 5), replace=False) / 2)
        says = [Line("assistant", "Two people wait near the road.", time_s) for time_s in times]
        clips.append(clip_of([NARRATE, *says], str(number)))
    num_frames = rng.integers(9, 17, num_clips)
    tokens = np.arange(num_frames.sum() * config.frame_num_tokens * 2).astype(np.float16)
    features = FrameFeatures(tokens.reshape(-1, config.frame_num_tokens, 2), num_frames)
    return streams_of_clips(clips, features, config.stream_config, tokenizer), features


@pytest.fixture(scope="module")
def streams_and_features(config, tokenizer):
    return many_streams(config, tokenizer)


def test_a_batch_holds_each_crops_tokens_frames_and_labels_at_their_rows(streams_and_features):
    """Compared with each crop, row by row."""
    streams, features = streams_and_features
    batches = Batches(streams, features, replace(SETTINGS, roll_ratio=0.7))
    num_rolled = 0
    for number, crops in enumerate(batches._plan_epoch(0)):
        batch = batches[number]
        length = batch.num_positions
        labels = torch.full((len(crops) * length,), NO_LABEL)
        labels[batch.label_rows] = batch.labels
        frames = {int(rows[0]): place for place, rows in enumerate(batch.frame_index)}
        for place, (clip, crop) in enumerate(crops):
            num_rolled += crop.is_rolled
            shown = iter(crop.frames()[0])
            for column in range(length):
                row = place * length + column
                if column >= crop.num_tokens:
                    assert not batch.is_text[place, column]
                    assert labels[row] == NO_LABEL
                    continue
                source = int(crop.rows[column])
                is_masked = crop.is_rolled and source < crop.stream.sink
                assert labels[row] == (NO_LABEL if is_masked else crop.stream.labels[source])
                if source in crop.stream.frame_starts:
                    frame = features.first_frames[clip] + next(shown)
                    assert torch.equal(
                        batch.features[frames.pop(row)], torch.tensor(features.tokens[frame])
                    )
                elif batch.is_text[place, column]:
                    assert batch.token_ids[place, column] == crop.stream.token_ids[source]
            assert not list(shown)
        assert not frames
        num_text = sum(len(crop.rows) for _, crop in crops) - batch.frame_index.numel()
        assert int(batch.is_text.sum()) == num_text
        assert batch.is_stream.tolist() == [
            int(row) in (batch.frame_index[:, -1]).tolist() for row in batch.label_rows
        ]
    assert num_rolled > 3


def test_a_batch_does_not_depend_on_earlier_ones(streams_and_features):
    ours, theirs = (Batches(*streams_and_features, SETTINGS) for _ in range(2))
    for number in range(9):
        ours[number]
    for number in (8, 2):
        for name, tensor in vars(theirs[number]).items():
            assert torch.equal(getattr(ours[number], name), tensor), name


def test_every_epoch_has_each_clip_once_without_an_incomplete_batch(streams_and_features):
    batches = Batches(*streams_and_features, SETTINGS)
    orders = []
    for epoch in range(2):
        clips = [clip for crops in batches._plan_epoch(epoch) for clip, _ in crops]
        assert len(clips) == len(set(clips)) == 18  # of 20, by threes
        orders.append(clips)
    assert orders[0] != orders[1]


def test_crops_of_a_batch_are_of_similar_length(streams_and_features):
    batches = Batches(*streams_and_features, replace(SETTINGS, max_frames=12))
    crops = batches._plan_epoch(0)
    spans = [
        max(crop.num_tokens for _, crop in each) - min(crop.num_tokens for _, crop in each)
        for each in crops
    ]
    lengths = [crop.num_tokens for each in crops for _, crop in each]
    assert sum(spans) <= max(lengths) - min(lengths)


def test_a_split_smaller_than_a_batch_is_refused(streams_and_features):
    streams, features = streams_and_features
    with pytest.raises(DataError, match=r"has 20 clips, batch_clips=21; lower"):
        Batches(streams, features, replace(SETTINGS, batch_clips=21))
