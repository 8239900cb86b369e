"""Every policy narrates a scene and asks its questions; one that never trims ends when full."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import long_scene
from benchmarks.long_scene import (
    POLICIES,
    EncodedFrames,
    EncodedStream,
    LongScene,
    Narrator,
    narrate_restarted,
)
from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.layout import FRAME
from mod_edge.runtime.conversation import SessionOptions
from mod_edge.runtime.cpu.torch_model import TorchModel
from tests.runtime.recorder import Recorder

FPS, NUM_FRAMES = 2.0, 24
OPTIONS = SessionOptions(
    threshold=0.725, max_new_tokens=4, frames_per_step=1, max_step_tokens=64, evict_fraction=0.125
)
ASKED = (0, 9, 17)  # frames


@pytest.fixture(scope="module")
def narrator(tiny_checkpoint):
    """The tiny model, on the PyTorch backend of the runtime."""
    checkpoint = Checkpoint(tiny_checkpoint)
    config, model = checkpoint.config, checkpoint.load_model()
    plan = plan_window(config, "160", text_minimum=80, dtype="float32")
    return Narrator(
        config, checkpoint.tokenizer, OPTIONS, plan, lambda _capacity: TorchModel(model), model
    )


@pytest.fixture(scope="module")
def scene(narrator):
    """Random frames and three questions."""
    size = (NUM_FRAMES, narrator.config.frame_num_tokens, narrator.config.text_config.hidden_size)
    embeds = np.random.default_rng(5).standard_normal(size, dtype=np.float32)
    starts = (0, *(frame + 1 for frame in ASKED))
    turns = tuple(
        Turn(first, last - first + 1, f"What is it at {last}?", "It.")
        for first, last in zip(starts, ASKED, strict=False)
    )
    return LongScene(Dialogue(turns, NUM_FRAMES), embeds, FPS)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_every_question_once(narrator, scene, policy):
    account = POLICIES[policy](narrator, scene)
    assert len(account.answers) == len(ASKED)
    assert (account.num_rolls == 0) == (policy == "never trimmed")


def test_a_window_that_is_never_trimmed_ends_when_it_is_full(narrator, scene, monkeypatch):
    """It is silent from then on, and questions of that time have empty answers."""
    monkeypatch.setattr(long_scene, "UNTRIMMED", narrator.plan)
    account = POLICIES["never trimmed"](narrator, scene)
    first, *_, last = account.answers
    assert first
    assert not last
    assert len(account.answers) == len(ASKED)
    assert all(said.time_s < ASKED[-1] / FPS for said in account.captions)


class CountedModel(TorchModel):
    """Counts the steps of each of its streams, by the frames in them."""

    def __init__(self, model):
        super().__init__(model)
        self.recorders = []

    def open_stream(self):
        self.recorders.append(Recorder(super().open_stream()))
        return self.recorders[-1]


def test_a_restart_feeds_the_prompt_again_and_every_frame_once(narrator, scene):
    counted = CountedModel(narrator.reference)
    account = narrate_restarted(replace(narrator, load=lambda _capacity: counted), scene)
    streams = [recorder.steps for recorder in counted.recorders]
    assert len(streams) == account.num_rolls + 1 > 2
    opening, instruction, *_ = streams[0]
    for steps in streams:
        assert [(pieces, ids) for pieces, ids, *_ in steps[:2]] == [opening[:2], instruction[:2]]
    assert sum(pieces.count(FRAME) for steps in streams for pieces, *_ in steps) == NUM_FRAMES


def test_frames_are_those_of_the_scene_from_the_first_on(narrator, scene):
    stream = EncodedStream(TorchModel(narrator.reference).open_stream(), scene, first_frame=7)
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    taken = [stream.encode(pixels[:1]), stream.encode(pixels)]
    np.testing.assert_array_equal(np.concatenate(taken), scene.embeds[7:10])
    times = [(frame.index, frame.time_s) for frame in EncodedFrames(scene, 22)]
    assert times == [(22, 11.0), (23, 11.5)]
