"""Vision features on disk: what the runtime would see, computed once."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from mod_edge.errors import DataError, SourceError
from mod_edge.runtime.capture import VideoFile
from mod_edge.runtime.preprocess import letterbox
from mod_edge.training.features import frame_features
from tests.training.toy_data import write_toy_data

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
RTOL_FP16 = 2e-3  # of the largest; measured 2.6e-4


def no_step(*_):
    pass


@pytest.fixture
def clips(tmp_path):
    return write_toy_data(tmp_path / "data", num_clips=3, num_frames=9)


@pytest.fixture
def model(make_config, make_model):
    return make_model(make_config())


def images_of(clip, model):
    """(F, I, I, 3) uint8, as a session prepares them."""
    side = model.config.vision_config.image_size
    images = []
    with VideoFile(clip.video, fps=model.config.stream_config.frame_fps) as video:
        for frame in video:
            images.append(np.zeros((side, side, 3), np.uint8))
            letterbox(frame.image, images[-1])
    return np.stack(images)


def test_the_connector_makes_of_them_what_the_runtime_sees(clips, model, tmp_path, monkeypatch):
    monkeypatch.setattr("mod_edge.training.features.FRAMES_AT_ONCE", 4)  # not a divisor of 9
    features = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert features.num_frames.tolist() == [9, 9, 9]
    for clip, first in zip(clips, features.first_frames, strict=True):
        theirs = model(torch.from_numpy(images_of(clip, model)))
        ours = model.connector(torch.tensor(features.tokens[first : first + 9]).float())
        assert float((ours - theirs).abs().max()) <= RTOL_FP16 * float(theirs.abs().max())


def test_they_are_computed_once(clips, model, tmp_path, monkeypatch):
    first = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    monkeypatch.setattr(model, "frame_tokens", lambda _: pytest.fail("computed again"))
    again = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert np.array_equal(first.tokens, again.tokens)


def test_another_tower_rate_or_video_has_features_of_its_own(clips, model, tmp_path):
    def num_kept():
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
        return len(list((tmp_path / "data" / ".features").iterdir()))

    assert num_kept() == 1
    model.vision_model.post_layernorm.bias[0] += 1
    assert num_kept() == 2
    config = model.config
    model.config = replace(config, stream_config=replace(config.stream_config, frame_fps=1.0))
    assert num_kept() == 3
    writer = cv2.VideoWriter(str(clips[0].video), cv2.VideoWriter_fourcc(*"MJPG"), 2, (48, 32))
    writer.write(np.zeros((32, 48, 3), np.uint8))
    writer.release()
    assert num_kept() == 4
    model.connector[0].bias[0] += 1  # it is trained, and no part of them
    assert num_kept() == 4


def test_numbers_too_large_for_float16_are_refused_and_leave_nothing(clips, model, tmp_path):
    model.vision_model.post_layernorm.weight.mul_(1e6)
    with pytest.raises(DataError, match="more than float16"):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert not list((tmp_path / "data" / ".features").iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_was_stopped_goes_on_to_the_same_numbers(clips, model, tmp_path, monkeypatch, stop):
    whole = frame_features(tmp_path / "data", clips, model, CPU, no_step).tokens[:]
    (store,) = (tmp_path / "data" / ".features").iterdir()
    shutil.rmtree(store)
    frame_tokens, encoded = model.frame_tokens, []

    def encode(pixels):
        encoded.append(len(pixels))
        if len(encoded) == 4:  # in the second clip
            raise stop
        return frame_tokens(pixels)

    monkeypatch.setattr("mod_edge.training.features.FRAMES_AT_ONCE", 4)  # 3 times for 9 frames
    monkeypatch.setattr(model, "frame_tokens", encode)
    with pytest.raises(stop):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
    (partial,) = store.parent.iterdir()
    assert partial.name == f"{store.name}.partial"
    with (partial / "num_frames.txt").open("a") as counts:
        counts.write("1")  # a line cut off
    features = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert encoded == [4, 4, 1, 4, 4, 4, 1, 4, 4, 1]
    assert features.num_frames.tolist() == [9, 9, 9]
    assert np.array_equal(features.tokens, whole)
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def test_videos_that_cannot_be_read_are_all_named_before_any_is_encoded(
    clips, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(model, "frame_tokens", lambda _: pytest.fail("encoded"))
    clips[0].video.write_bytes(b"")
    clips[2].video.write_bytes(b"no video at all")
    with pytest.raises(SourceError, match=r"is empty.*; .*2.avi"):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
