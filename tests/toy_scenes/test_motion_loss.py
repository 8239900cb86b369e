"""The motion loss: its targets are true, and a model learns them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mod_edge.config import MoDConfig, TextConfig
from mod_edge.data.clips import read_clips
from mod_edge.errors import DataError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.toy_scenes.motion_loss import (
    GAINS,
    NUM_QUANTITIES,
    MotionLoss,
    motion_loss,
    targets_of_scenes,
)
from mod_edge.toy_scenes.scene import COLOURS, Scene, Thing, Track
from mod_edge.toy_scenes.scenes import scenes_of_clips, write_scenes
from mod_edge.training import train as train_module
from mod_edge.training.batches import Batch
from mod_edge.training.recipe import Recipe, TrainConfig
from tests.training.test_train import SMALL
from tests.training.toy_data import write_toy_data

DURATION_S, NUM_CLIPS, FPS = 6.0, 3, 2.0
CPU = torch.device("cpu")
SETTINGS = TrainConfig(
    trainable=("connector", "model", "lm_head"),
    steps=8,
    batch_clips=2,
    max_frames=6,
    learning_rate=3e-3,
    auxiliary_loss="motion",
    auxiliary_loss_weight=1.0,
    save_every=4,
    device="cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(folder, {"train": NUM_CLIPS}, seed=5, force=False, duration_s=DURATION_S)
    return folder


pytestmark = pytest.mark.numeric


def run(data, output, *, settings=SETTINGS, on_step=lambda *_: None, resume=False):
    recipe = Recipe("tiny", SMALL, settings)
    train_module.train(
        data,
        recipe,
        output,
        resume=resume,
        force=False,
        on_step=on_step,
        auxiliary_losses={"motion": motion_loss},
    )
    return json.loads((output / "training.json").read_text())["losses"]


def test_a_clips_scene_matches_its_captions(data):
    clips = read_clips(data, "train")
    for clip, scene in zip(clips, scenes_of_clips(data, clips), strict=True):
        told = [line.content for line in clip.conversation if line.kind]
        assert [each.text for each in scene.happenings if each.kind] == told


def test_targets_are_places_and_changes():
    def thing(shape, colour, *tracks):
        return Thing(shape, [(0.0, colour)], *tracks)

    still = Track.constant
    moves = thing("box", "red", Track([1.0, 2.0], [0.3, 0.5]), still(0.7), still(0.1))
    grows = thing("ball", "blue", still(0.5), still(0.25), Track([1.0, 2.0], [0.1, 0.12]))
    outside = thing("star", "cyan", still(-0.1), still(0.5), still(0.1))
    scene = Scene(DURATION_S, 0, [moves, grows, outside])
    targets = targets_of_scenes([scene], [5], FPS).reshape(5, len(COLOURS), NUM_QUANTITIES)
    red, blue = (targets[:, COLOURS.index(name)] / GAINS for name in ("red", "blue"))
    np.testing.assert_allclose(red[0], [-0.2, 0.2, np.nan, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(red[2], [-0.2, 0.2, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(red[3], [-0.1, 0.2, 0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(blue[4], [0, -0.25, 0, 0, 0.01], atol=1e-6)
    others = [number for number, name in enumerate(COLOURS) if name not in ("red", "blue")]
    assert np.isnan(targets[:, others]).all()


def batch_of(frame_index, frames, num_rows):
    unread = ("is_text", "features", "label_rows", "labels", "is_stream")
    return Batch(
        **dict.fromkeys(unread),
        token_ids=torch.zeros(1, num_rows, dtype=torch.int64),
        frame_index=torch.tensor(frame_index),
        frames=torch.tensor(frames),
    )


class Staring:
    """A decoder whose first head attends only to one row."""

    def __init__(self, row):
        self.row = row

    def query_and_key(self, hidden, _number):
        key = torch.full((*hidden.shape[:2], 1, 1), -30.0)
        key[:, self.row] = 0
        return torch.ones_like(key), key


def test_targets_are_read_at_each_frames_cls_token_after_the_first_layer():
    targets = np.array([[0.5, np.nan], [np.nan, -1.0], [2.0, 2.0]], np.float32)
    motion = MotionLoss(targets, SMALL, CPU)
    batch = batch_of([[0, 1], [3, 4]], [0, 1], 6)
    silent = [torch.zeros(1, 6, 32) for _ in range(3)]
    loss = motion.loss(Staring(row=0), silent, batch)
    assert loss.item() == pytest.approx((0.5**2 + 1) / 2)
    hidden_states = [torch.randn(1, 6, 32, requires_grad=True) for _ in range(3)]
    motion.loss(Staring(row=0), hidden_states, batch).backward()
    read = [states.grad is not None and states.grad[0].abs().sum(1) for states in hidden_states]
    assert read[0] is False
    assert read[2] is False
    assert read[1].ne(0).tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize(
    ("row", "frames", "loss"),
    [
        (0, [5, 6], 0.0),
        (1, [5, 6], 30.0),  # attends to the other token of the frame before
        (3, [5, 6], 30.0),  # attends to itself
        (5, [5, 6], np.log(4)),  # ahead, so masked: attends equally to all rows up to itself
    ],
)
def test_a_head_looks_back_at_the_cls_token_one_frame_before(row, frames, loss):
    motion = MotionLoss(np.zeros((7, 2), np.float32), SMALL, CPU)
    hidden_states = [torch.zeros(1, 6, 32)] * 2
    batch = batch_of([[0, 1], [3, 4]], frames, 6)
    assert motion.loss(Staring(row), hidden_states, batch).item() == pytest.approx(loss, abs=1e-6)


def test_no_head_looks_back_across_a_gap_in_a_crop():
    motion = MotionLoss(np.zeros((9, 2), np.float32), SMALL, CPU)
    batch = batch_of([[0, 1], [3, 4], [6, 7]], [5, 7, 8], 9)  # the sink's frame, then two others
    loss = motion.loss(Staring(row=3), [torch.zeros(1, 9, 32)] * 2, batch)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_loss_of_a_batch_without_targets_is_zero():
    motion = MotionLoss(np.full((7, 2), np.nan, np.float32), SMALL, CPU)
    batch = batch_of([[0, 1]], [5], 6)  # without a frame before it
    assert motion.loss(Staring(row=0), [torch.randn(1, 6, 32)] * 2, batch).item() == 0


@pytest.mark.parametrize("uid", ["kitchen", "kitchen-1", "train-x"])
def test_a_clip_that_scenes_did_not_write_is_named(data, uid):
    clips = [replace(read_clips(data, "train")[0], uid=uid)]
    with pytest.raises(DataError, match=f"'{uid}' was not written by.*without auxiliary_loss"):
        list(scenes_of_clips(data, clips))


def test_a_model_that_cannot_look_back_is_refused():
    everywhere = replace(SMALL, mod_config=MoDConfig("all"))
    narrow = replace(SMALL, text_config=TextConfig(1, 64, 3, 4, 2, 8, 512))
    for model in (replace(SMALL, frame_token_cls=False), everywhere, narrow):
        with pytest.raises(DataError, match=r"frame_token_cls, a dense layer 0.*this one without"):
            MotionLoss(np.zeros((1, 2), np.float32), model, CPU)


def test_the_loss_falls_in_training(data, tmp_path):
    losses = run(data, tmp_path / "model", settings=replace(SETTINGS, steps=60))
    assert np.mean(losses["motion"][-9:]) < 0.8 * losses["motion"][0]
    assert len(losses["motion"]) == len(losses["lm"]) == 60
    Checkpoint(tmp_path / "model")  # refuses unknown tensors


def test_a_resumed_training_has_the_same_losses(data, tmp_path):
    def stop(name, done, _total):
        if "loss" in name and done == 6:
            raise KeyboardInterrupt

    whole = run(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", on_step=stop)
    assert run(data, tmp_path / "cut", resume=True) == whole


def test_a_data_set_that_scenes_did_not_write_is_refused(tmp_path):
    write_toy_data(tmp_path / "data", num_clips=2)
    with pytest.raises(DataError, match=r"no scenes.json.* without auxiliary_loss"):
        run(tmp_path / "data", tmp_path / "model")
