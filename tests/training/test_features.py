"""Vision features on disk equal the runtime's and are computed once."""

import errno
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from mod_edge.errors import DataError, SourceError
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.preprocess import fit_frame
from mod_edge.training import features as features_module
from tests.training.toy_data import write_toy_data

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
RTOL_FP16 = 2e-3  # relative to the largest; measured 2.6e-4


def no_step(*_):
    pass


def frame_features(folder, clips, model, device, on_step):
    """The features, cached where `train` keeps them by default."""
    store = folder / features_module.FEATURES_FOLDER
    return features_module.frame_features(folder, clips, model, device, on_step, store=store)


@pytest.fixture
def clips(tmp_path):
    return write_toy_data(tmp_path / "data", num_clips=3, num_frames=9)


@pytest.fixture
def model(make_config, make_model):
    return make_model(make_config())


@pytest.fixture
def batches_of_four(monkeypatch):
    """Frames are encoded in batches of 4, which does not divide the 9 frames of a clip."""
    monkeypatch.setattr("mod_edge.training.features.FRAMES_AT_ONCE", 4)


def images_of(clip, model):
    """(F, I, I, 3) uint8, preprocessed as in a session."""
    side = model.config.vision_config.image_size
    images = []
    with VideoFile(clip.video, fps=model.config.stream_config.frame_fps) as video:
        for frame in video:
            images.append(np.zeros((side, side, 3), np.uint8))
            fit_frame(frame.image, images[-1], model.config.vision_config)
    return np.stack(images)


@pytest.mark.parametrize("frame_resize", ["letterbox", "stretch"])
@pytest.mark.usefixtures("batches_of_four")
def test_the_connectors_output_for_features_is_the_runtimes(
    clips, make_config, make_model, tmp_path, frame_resize
):
    vision = replace(make_config().vision_config, frame_resize=frame_resize)
    model = make_model(replace(make_config(), vision_config=vision))
    features = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert features.num_frames.tolist() == [9, 9, 9]
    for clip, first in zip(clips, features.first_frames, strict=True):
        theirs = model(torch.from_numpy(images_of(clip, model)))
        ours = model.connector(torch.tensor(features.tokens[first : first + 9]).float())
        assert float((ours - theirs).abs().max()) <= RTOL_FP16 * float(theirs.abs().max())


def test_features_are_computed_once(clips, model, tmp_path, monkeypatch):
    first = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    monkeypatch.setattr(model, "frame_tokens", lambda _: pytest.fail("computed again"))
    again = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert np.array_equal(first.tokens, again.tokens)


def test_another_tower_rate_video_or_batch_size_has_separate_features(
    clips, model, tmp_path, monkeypatch
):
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
    model.connector[0].bias[0] += 1  # trained, so not part of the key
    assert num_kept() == 4
    monkeypatch.setattr("mod_edge.training.features.FRAMES_AT_ONCE", 5)
    assert num_kept() == 5


def test_outputs_too_large_for_float16_are_refused_and_leave_nothing(clips, model, tmp_path):
    model.vision_model.post_layernorm.weight.mul_(1e6)
    with pytest.raises(DataError, match="above the maximum of float16"):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert not list((tmp_path / "data" / ".features").iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("num_encoded", range(3, 7))  # stopped at any batch of the second clip
@pytest.mark.usefixtures("batches_of_four")
def test_a_stopped_computation_continues_to_the_same_numbers(
    clips, model, tmp_path, monkeypatch, stop, num_encoded
):
    whole = frame_features(tmp_path / "data", clips, model, CPU, no_step).tokens[:]
    (store,) = (tmp_path / "data" / ".features").iterdir()
    shutil.rmtree(store)
    frame_tokens, encoded = model.frame_tokens, []

    def encode(pixels):
        encoded.append(len(pixels))
        if len(encoded) == num_encoded + 1:
            raise stop
        return frame_tokens(pixels)

    monkeypatch.setattr(model, "frame_tokens", encode)
    with pytest.raises(stop):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
    (partial,) = store.parent.iterdir()
    assert partial.name == f"{store.name}.partial"
    with (partial / "num_frames.txt").open("a") as counts:
        counts.write("1")  # an incomplete line
    features = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    num_left = 6 if num_encoded < 6 else 3  # the incomplete clip is encoded again
    assert encoded == [4] * (num_encoded + 1 + num_left)
    assert features.num_frames.tolist() == [9, 9, 9]
    assert np.array_equal(features.tokens, whole)  # the same batches in the same process
    assert [path.name for path in store.parent.iterdir()] == [store.name]


@pytest.mark.usefixtures("batches_of_four")
def test_a_full_disk_names_the_folder_and_the_option_and_keeps_the_finished_clips(
    clips, model, tmp_path, monkeypatch
):
    frame_tokens, encoded = model.frame_tokens, []

    def encode(pixels):
        encoded.append(len(pixels))
        if len(encoded) == 5:  # in the second clip
            raise OSError(errno.ENOSPC, "No space left on device")
        return frame_tokens(pixels)

    monkeypatch.setattr(model, "frame_tokens", encode)
    store = tmp_path / "data" / ".features"
    says = rf"cannot be written to {store}: No space left .*free some space, or .*--features DIR"
    with pytest.raises(DataError, match=says):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
    (partial,) = store.iterdir()
    assert (partial / "num_frames.txt").read_text() == "9\n"
    assert frame_features(tmp_path / "data", clips, model, CPU, no_step).num_frames.sum() == 27


def test_a_place_that_cannot_be_written_is_named_before_any_video_is_read(
    clips, model, tmp_path, monkeypatch
):
    def is_read_only(**_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(features_module, "TemporaryFile", is_read_only)
    with pytest.raises(DataError, match=r"Read-only file system; keep them in another folder"):
        frame_features(tmp_path / "data", clips, model, CPU, lambda *_: pytest.fail("it began"))


class Batched:
    """A tower that writes each frame's place in the batch and the batch's size into its tokens.

    Attributes:
        is_black: whether each frame is black, by batch.
    """

    def __init__(self, model):
        self.size = model.config.frame_num_tokens, model.config.vision_config.hidden_size
        self.is_black = []

    def encode(self, frames):
        self.is_black.append((frames.flatten(1).amax(1) == 0).tolist())
        tokens = torch.zeros(len(frames), *self.size)
        tokens[:, 0, 0] = torch.arange(len(frames))
        tokens[:, 0, 1] = len(frames)
        return tokens


@pytest.mark.usefixtures("batches_of_four")
def test_a_frame_always_has_the_same_place_in_a_batch_of_one_size(
    clips, model, tmp_path, monkeypatch
):
    """Kernels may round differently by shape and row."""
    tower = Batched(model)
    monkeypatch.setattr(model, "frame_tokens", tower.encode)
    features = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    assert features.tokens[:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0] * 3
    assert set(features.tokens[:, 0, 1].tolist()) == {4}
    for is_black in tower.is_black[2::3]:  # after a clip's ninth frame, not the last batch's pixels
        assert is_black == [False, True, True, True]


@pytest.mark.usefixtures("batches_of_four")
def test_clips_too_long_to_be_decoded_ahead_have_the_same_features(
    clips, model, tmp_path, monkeypatch
):
    ahead = frame_features(tmp_path / "data", clips, model, CPU, no_step)
    monkeypatch.setattr("mod_edge.training.features.MOST_FRAMES_AHEAD", 8)  # they have 9
    store = tmp_path / "other"
    streamed = features_module.frame_features(
        tmp_path / "data", clips, model, CPU, no_step, store=store
    )
    # Read in another order, a clip's frames would differ by 1 and more.
    np.testing.assert_allclose(streamed.tokens, ahead.tokens, atol=1e-3)


def test_all_unreadable_videos_are_named_before_any_is_encoded(clips, model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "frame_tokens", lambda _: pytest.fail("encoded"))
    clips[0].video.write_bytes(b"")
    clips[2].video.write_bytes(b"no video at all")
    with pytest.raises(SourceError, match=r"is empty.*; .*2.avi"):
        frame_features(tmp_path / "data", clips, model, CPU, no_step)
