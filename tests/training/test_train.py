"""Training from end to end on frames of one colour: it learns, and a resumed run loses nothing."""

import json
import os
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mod_edge.config import MoDConfig, TextConfig, VisionConfig
from mod_edge.errors import CheckpointError, ConfigError, DataError
from mod_edge.model.checkpoint import CHECKPOINT, Checkpoint
from mod_edge.model.presets import preset_config
from mod_edge.model.weight_files import WEIGHTS_FILE
from mod_edge.training import train as train_module
from mod_edge.training.initial_weights import initial_model
from mod_edge.training.plot import plot_losses
from mod_edge.training.recipe import Recipe, TrainConfig
from mod_edge.training.resume_state import ResumeState
from mod_edge.training.trainer import adamw, learning_rate, trained_parameters
from tests.frame_layouts import OTHER_LAYOUTS
from tests.training.toy_data import write_toy_data

PRESET = preset_config("tiny")
SMALL = replace(
    PRESET,
    text_config=TextConfig(32, 64, 3, 4, 2, 8, 512),
    vision_config=VisionConfig(16, 24, 1, 2, image_size=24, patch_size=8),
    stream_config=replace(PRESET.stream_config, system_prompt="You watch."),
    frame_token_pooled=(1, 2),
)
SETTINGS = TrainConfig(
    trainable=("connector", "model", "lm_head"),
    steps=6,
    batch_clips=3,
    max_frames=8,
    learning_rate=1e-2,
    save_every=2,
    device="cpu",
)
RECIPE = Recipe("tiny", SMALL, SETTINGS)


class PowerCutError(Exception):
    """Ends a training run like a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "data"
    write_toy_data(folder, num_clips=7)
    return folder


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Losses are not plotted (0.5 s each)."""
    monkeypatch.setattr(train_module, "plot_losses", lambda *_: None)


pytestmark = pytest.mark.numeric


def run(data, recipe, output, on_step=lambda *_: None, *, resume=False, force=False):
    return train_module.train(data, recipe, output, resume=resume, force=force, on_step=on_step)


def at_step(step, action):
    """An `on_step` that calls `action` after `step` steps."""
    return lambda name, done, _total: action() if "loss" in name and done == step else None


def cut_power():
    raise PowerCutError


def weights_of(folder):
    return dict(Checkpoint(folder).tensors(""))


def losses_of(folder):
    return json.loads((folder / "training.json").read_text())["losses"]


def assert_same_training(ours, theirs):
    assert losses_of(ours) == losses_of(theirs)
    mine, others = weights_of(ours), weights_of(theirs)
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, others[name]), name


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """The output of an uninterrupted training run, with its plot."""
    output = tmp_path_factory.mktemp("uninterrupted") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "plot_losses", plot_losses)
        run(data, RECIPE, output)
    return output


def test_the_loss_falls_on_a_handful_of_clips(data, tmp_path):
    settings = replace(SETTINGS, steps=110, batch_clips=7, max_frames=14, save_every=999)
    report = run(data, replace(RECIPE, train=settings), tmp_path / "model")
    losses = losses_of(tmp_path / "model")
    assert losses["lm"][0] > 5  # about log(512): an untrained model
    assert sum(losses["lm"][-9:]) / 9 < 0.1  # guessing the colour gives 0.15
    assert sum(losses["stream"][-9:]) / 9 < 0.45  # knowing only the rate of changes gives 0.6
    assert report.steps == 110
    assert report.num_trained < report.num_parameters


@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_a_model_of_another_frame_layout_trains(data, tmp_path, layout):
    config = OTHER_LAYOUTS[layout](SMALL)
    recipe = Recipe("tiny", config, replace(SETTINGS, steps=20, save_every=99))
    run(data, recipe, tmp_path / "model")
    assert Checkpoint(tmp_path / "model").load_model().config == config
    losses = losses_of(tmp_path / "model")["stream"]
    assert losses[0] > 5  # about log(512): an untrained model
    assert losses[-1] < 3  # measured 2.0 and 1.8


def test_the_output_is_a_checkpoint_with_a_training_record(uninterrupted):
    assert Checkpoint(uninterrupted).load_model().config == SMALL
    assert CHECKPOINT.foreign_files(uninterrupted) == []
    record = json.loads((uninterrupted / "training.json").read_text())
    assert record["recipe"]["train"]["steps"] == len(record["losses"]["lm"]) == 6
    assert {"mod_edge", "torch", "python"} <= record["versions"].keys()
    assert (uninterrupted / "loss.png").stat().st_size > 1000
    assert not ResumeState(uninterrupted).folder.exists()


def test_only_trainable_parameters_change(uninterrupted, data, tmp_path):
    start = dict(initial_model(SMALL, None, SETTINGS.seed).named_parameters())
    for name, tensor in weights_of(uninterrupted).items():
        assert torch.equal(tensor, start[name]) == name.startswith("vision_model."), name
    routers = replace(SETTINGS, steps=1, trainable=("router",))
    run(data, replace(RECIPE, train=routers), tmp_path / "model")
    changed = {
        name
        for name, tensor in weights_of(tmp_path / "model").items()
        if not torch.equal(tensor, start[name])
    }
    assert changed == {"model.layers.1.router.weight", "model.layers.1.router.bias"}


@pytest.mark.parametrize(("step", "saved"), [(1, 0), (5, 4)])
def test_a_killed_training_resumes_to_the_same_result(uninterrupted, data, tmp_path, step, saved):
    output = tmp_path / "model"
    with pytest.raises(PowerCutError):
        run(data, RECIPE, output, at_step(step, cut_power))
    assert not output.exists()
    steps = []
    run(data, RECIPE, output, lambda name, done, _: steps.append((name, done)), resume=True)
    assert next(done for name, done in steps if "loss" in name) == saved + 1
    assert_same_training(output, uninterrupted)


def test_a_training_killed_while_writing_its_checkpoint_can_be_resumed(
    uninterrupted, data, tmp_path, monkeypatch
):
    output = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_model", lambda *_: cut_power())
        with pytest.raises(PowerCutError):
            run(data, RECIPE, output)
    assert not output.exists()
    run(data, RECIPE, output, at_step(6, lambda: pytest.fail("trained again")), resume=True)
    assert_same_training(output, uninterrupted)


@contextmanager
def handled(number, handler):
    """The signal's handler is `handler` in the block."""
    before = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_training_saves_its_state(uninterrupted, data, tmp_path, number):
    output = tmp_path / "model"
    with handled(number, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        run(data, RECIPE, output, at_step(3, lambda: os.kill(os.getpid(), number)))
    assert torch.load(ResumeState(output).folder / "state.pt")["step"] == 3
    run(data, RECIPE, output, resume=True)
    assert_same_training(output, uninterrupted)


def test_a_second_hang_up_does_not_lose_the_state(data, tmp_path):
    def hang_up_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)

    with handled(signal.SIGHUP, signal.SIG_DFL), pytest.raises(KeyboardInterrupt):
        run(data, RECIPE, tmp_path / "model", at_step(3, hang_up_twice))
    assert torch.load(ResumeState(tmp_path / "model").folder / "state.pt")["step"] == 3


def test_an_ignored_hang_up_does_not_stop_a_training(data, tmp_path):
    hang_up = at_step(3, lambda: os.kill(os.getpid(), signal.SIGHUP))
    with handled(signal.SIGHUP, signal.SIG_IGN):
        assert run(data, RECIPE, tmp_path / "model", hang_up).steps == SETTINGS.steps


@pytest.mark.parametrize(
    "mod",
    [
        None,
        MoDConfig("all", router_scaling="delta"),
        MoDConfig(selection="random"),
        MoDConfig(selection="uniform"),
        MoDConfig("early_exit", exit_layer=1),
        MoDConfig("layer_skip"),
    ],
    ids=str,
)
def test_every_policy_trains_and_resumes(data, tmp_path, mod):
    settings = replace(SETTINGS, steps=2, save_every=1, accumulate=2, dtype="bfloat16")
    recipe = Recipe("tiny", replace(SMALL, mod_config=mod), settings)
    run(data, recipe, tmp_path / "whole")
    with pytest.raises(PowerCutError):
        run(data, recipe, tmp_path / "cut", at_step(2, cut_power))
    run(data, recipe, tmp_path / "cut", resume=True)
    assert_same_training(tmp_path / "cut", tmp_path / "whole")


@pytest.fixture
def cut(data, tmp_path):
    """The output of a training run that was killed at step 3."""
    with pytest.raises(PowerCutError):
        run(data, RECIPE, tmp_path / "model", at_step(3, cut_power))
    return tmp_path / "model"


def test_an_unfinished_training_needs_resume_or_force(cut, data):
    with pytest.raises(DataError, match=r"with --resume or start over with --force"):
        run(data, RECIPE, cut)
    run(data, RECIPE, cut, force=True)
    assert len(losses_of(cut)["lm"]) == 6


def test_force_never_removes_other_files(data, tmp_path):
    folder = ResumeState(tmp_path / "model").folder
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds more than an unfinished training"):
        run(data, RECIPE, tmp_path / "model", force=True)
    assert (folder / "thesis.tex").exists()


def test_another_recipe_or_other_data_cannot_be_resumed(cut, data, tmp_path):
    other = replace(RECIPE, train=replace(SETTINGS, learning_rate=0.5))
    with pytest.raises(DataError, match=r"train\.learning_rate was 0\.01, is 0\.5"):
        run(data, other, cut, resume=True)
    write_toy_data(tmp_path / "other", num_clips=4)
    with pytest.raises(DataError, match="data was"):
        run(tmp_path / "other", RECIPE, cut, resume=True)


def test_a_second_training_of_the_same_output_is_refused_at_once(data, tmp_path, uninterrupted):
    output, num_refused = tmp_path / "model", []

    def train_too():
        for options in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(ConfigError, match=r"another process is writing .*model .*partial"):
                run(data, RECIPE, output, lambda *_: pytest.fail("it started"), **options)
            num_refused.append(1)

    run(data, RECIPE, output, at_step(3, train_too))
    assert len(num_refused) == 3
    assert_same_training(output, uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_features_are_kept_in_the_folder_that_is_named(tmp_path):
    write_toy_data(tmp_path / "data", num_clips=3)
    (tmp_path / "data" / ".features").touch()  # a file, so that no folder can be made there
    recipe = replace(RECIPE, train=replace(SETTINGS, steps=1))
    with pytest.raises(
        DataError, match=r"features cannot be written to .*\.features: .*--features"
    ):
        run(tmp_path / "data", recipe, tmp_path / "model")
    options = {"resume": False, "force": False, "features": tmp_path / "kept" / "here"}
    train_module.train(
        tmp_path / "data", recipe, tmp_path / "model", on_step=lambda *_: None, **options
    )
    (kept,) = (tmp_path / "kept" / "here").iterdir()
    assert {path.name for path in kept.iterdir()} == {"frames.f16", "num_frames.txt"}


def test_resume_without_an_unfinished_training_is_an_error(data, tmp_path):
    with pytest.raises(DataError, match=r"no .*model\.partial to resume from"):
        run(data, RECIPE, tmp_path / "model", resume=True)


def test_a_state_of_another_version_or_a_damaged_one_is_refused(cut, data):
    path = ResumeState(cut).folder / "state.pt"
    state = torch.load(path)
    state["watch_losses"] = state.pop("auxiliary_losses")
    torch.save(state, path)
    with pytest.raises(DataError, match=r"state\.pt was saved by another version .*start over"):
        run(data, RECIPE, cut, resume=True)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"state\.pt is damaged"):
        run(data, RECIPE, cut, resume=True)


def test_an_unknown_auxiliary_loss_is_refused_at_once(data, tmp_path):
    settings = replace(SETTINGS, auxiliary_loss="motoin", auxiliary_loss_weight=1.0)
    with pytest.raises(DataError, match=r"auxiliary_loss='motoin' is unknown; known are none"):
        run(data, replace(RECIPE, train=settings), tmp_path / "model")
    assert not ResumeState(tmp_path / "model").folder.exists()


def test_an_existing_output_is_refused_at_once(data, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        run(data, RECIPE, tmp_path / "model", lambda *_: pytest.fail("it started"))


def test_a_base_with_nan_weights_is_refused_at_once(data, tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    weights = load_file(base / WEIGHTS_FILE)
    weights["connector.0.bias"][0] = torch.nan
    save_file(weights, base / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=r"'connector\.0\.bias' \(1 NaN, 0 infinite of 96\)"):
        run(data, replace(RECIPE, init=base), tmp_path / "model")
    assert not ResumeState(tmp_path / "model").folder.exists()


def test_a_loss_that_is_not_finite_is_an_error(cut, data):
    path = ResumeState(cut).folder / "state.pt"
    state = torch.load(path)
    state["weights"]["connector.0.bias"][0] = torch.nan
    torch.save(state, path)
    with pytest.raises(DataError, match=r"not finite at step 3; lower learning_rate"):
        run(data, RECIPE, cut, resume=True)


@pytest.mark.parametrize(
    ("trainable", "left"),
    [(("connector", "lm_head"), ("router",)), (("model.layers",), ("connector",)), (("",), ())],
)
def test_a_part_that_was_trained_is_not_called_untrained(data, tmp_path, trainable, left):
    config = replace(SMALL, untrained_parts=("connector", "router"))
    settings = replace(SETTINGS, steps=1, trainable=trainable)
    run(data, Recipe("tiny", config, settings), tmp_path / "model")
    assert Checkpoint(tmp_path / "model").config == replace(SMALL, untrained_parts=left)


def test_trainable_strings_that_match_nothing_are_refused():
    model = initial_model(SMALL, None, 0)
    with pytest.raises(DataError, match=r"'lora', 'vision_model'; the model has connector, lm_"):
        trained_parameters(model, ("lora", "model", "vision_model"))


def test_only_matrices_have_weight_decay(make_config):
    trained = trained_parameters(initial_model(make_config(), None, 0), ("",))
    optimizer = adamw(trained, SETTINGS)
    decayed, plain = ({id(each) for each in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0]
    for name, parameter in trained.items():
        is_plain = parameter.ndim == 1 or "embed_tokens" in name
        assert id(parameter) in (plain if is_plain else decayed), name


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    settings = replace(SETTINGS, steps=100, warmup_ratio=0.1, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_videos_that_end_too_soon_are_counted(tmp_path):
    write_toy_data(tmp_path / "data", num_clips=3)
    path = tmp_path / "data" / "train.jsonl"
    first, *others = map(json.loads, path.read_text().splitlines())
    lines = [first | {"duration": first["duration"] + 5}, *others]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    recipe = replace(RECIPE, train=replace(SETTINGS, steps=1))
    assert run(tmp_path / "data", recipe, tmp_path / "model").num_short_clips == 1


def test_a_step_without_reply_tokens_has_no_lm_loss(tmp_path):
    write_toy_data(tmp_path / "data", num_clips=3)
    path = tmp_path / "data" / "train.jsonl"
    told, *others = map(json.loads, path.read_text().splitlines())
    lines = [told, *(each | {"conversation": []} for each in others)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings = replace(SETTINGS, batch_clips=1, max_frames=14, roll_ratio=0.0)
    report = run(tmp_path / "data", replace(RECIPE, train=settings), tmp_path / "model")
    losses = losses_of(tmp_path / "model")["lm"]
    known = [loss for loss in losses if loss is not None]
    assert len(losses) == 6
    assert len(known) == 2  # one clip in three
    assert report.lm_loss == pytest.approx(sum(known) / 2)
    plot_losses(losses, losses, tmp_path / "loss.png")


def test_a_state_that_cannot_be_written_leaves_the_previous_one(data, tmp_path, monkeypatch):
    save, written = torch.save, []

    def fill_up(state, file):
        written.append(state)
        if len(written) == 2:
            file.write(b"0" * 1000)
            raise RuntimeError("unexpected pos") from OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", fill_up)
    with pytest.raises(DataError, match=r"state\.pt\.new cannot be written .*free some space"):
        run(data, RECIPE, tmp_path / "model")
    folder = ResumeState(tmp_path / "model").folder
    assert [path.name for path in folder.iterdir()] == ["state.pt"]
    assert torch.load(folder / "state.pt")["step"] == 2


def test_the_trainer_does_not_use_toy_scenes():
    files = Path(train_module.__file__).parent.glob("*.py")
    assert not [path.name for path in files if "toy_scenes" in path.read_text(encoding="utf-8")]
