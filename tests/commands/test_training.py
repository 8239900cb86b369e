"""`scenes`, `pretrain`, `train` and `eval`: options reach the library, and its results are printed.

The library's functions are replaced by stand-ins; they have tests of their own.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from mod_edge.commands import evaluation_view as evaluate_view
from mod_edge.commands.app import app
from mod_edge.commands.console import out
from mod_edge.errors import DataError
from mod_edge.evaluation import evaluate as evaluate_module
from mod_edge.native.installed import install_command
from mod_edge.toy_scenes import scenes as scenes_module
from mod_edge.toy_scenes.motion_loss import motion_loss
from mod_edge.toy_scenes.pretraining import PretrainingOptions
from mod_edge.training import recipe as recipe_module
from mod_edge.training import train as train_module
from mod_edge.training.train import TrainingReport
from tests.commands.mod_edge_command import invoke, run_without, succeeds

RECIPE = "a recipe"
REPORT = TrainingReport(Path("out"), 300, 40, 884_000, 710_400, 0.25, 0.0625, 61.4, 0)


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in(module, name, does)`: replaces a function and returns the list of its calls."""

    def replace(module, name, does):
        signature, calls = inspect.signature(getattr(module, name)), []

        def called(*args, **kwargs):
            # fails on arguments that the real function would reject
            calls.append(signature.bind(*args, **kwargs).arguments)
            kwargs["on_step"]("a part", 1, 4)
            return does(*args)

        monkeypatch.setattr(module, name, called)
        return calls

    return replace


# ---- scenes ----


def test_scenes_passes_its_options_on(stand_in, tmp_path):
    calls = stand_in(scenes_module, "write_scenes", lambda *_: None)
    counts = ("--train", 7, "--validation", 2, "--test", 3, "--combinations", 4)
    result = succeeds("scenes", tmp_path, *counts, "--seed", 5, "--force")
    assert result.stdout == (
        f"wrote {tmp_path}: 7 train, 2 validation, 3 test, 4 combinations clips, seed 5\n"
    )
    assert result.stderr == "scenes: a part (25%)\n"
    (call,) = calls
    assert call.pop("on_step")
    assert list(call["counts"]) == [split.name for split in scenes_module.SPLITS]
    assert call == {
        "folder": tmp_path,
        "counts": {"train": 7, "validation": 2, "test": 3, "combinations": 4},
        "seed": 5,
        "photographs": None,
        "duration_s": 30.0,
        "force": True,
    }


# ---- pretrain ----


def test_the_help_of_pretrain_names_the_default_number_of_steps():
    # written out in the help, because PretrainingOptions imports torch
    (steps,) = (
        each for each in get_command(app).commands["pretrain"].params if each.name == "steps"
    )
    assert steps.help == f"Training steps; default: {PretrainingOptions.steps}."


# ---- train ----


@pytest.fixture
def reads_recipe(monkeypatch):
    monkeypatch.setattr(recipe_module, "read_recipe", lambda path: f"{RECIPE} in {path}")


def test_train_prints_its_result_in_one_line(reads_recipe, stand_in):
    calls = stand_in(train_module, "train", lambda *_: REPORT)
    arguments = ("train", "--data", "data", "--config", "mine.toml", "-o", "out")
    assert succeeds(*arguments).stdout == (
        "wrote out: 884.0 kparameters, 710.4 k of them trained in 300 steps on 40 clips; "
        "LM loss 0.250, stream loss 0.062; 61 s\n"
    )
    assert json.loads(succeeds(*arguments, "--json").stdout) == REPORT.to_json()
    succeeds(*arguments, "--resume", "--force", "--features", "cache")
    for call in calls:
        assert call.pop("on_step")
        assert call.pop("resume") == call.pop("force") == (call is calls[-1])
        assert call == {
            "data": Path("data"),
            "recipe": f"{RECIPE} in mine.toml",
            "output": Path("out"),
            "features": Path("cache") if call is calls[-1] else None,
            "auxiliary_losses": {"motion": motion_loss},
        }


@pytest.mark.parametrize(
    ("has_state", "says"),
    [
        (True, "interrupted; run the same command with --resume to continue"),
        (False, "interrupted; no incomplete files were left"),
    ],
)
def test_an_interrupted_training_says_how_to_continue(
    reads_recipe, stand_in, tmp_path, has_state, says
):
    def stopped(_data, _recipe, output):
        if has_state:
            output.with_name("out.partial").mkdir()
        raise KeyboardInterrupt

    stand_in(train_module, "train", stopped)
    result = invoke("train", "--data", "data", "--config", "mine.toml", "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == f"train: a part (25%)\n{says}\n"


def test_a_faulty_recipe_is_one_line(tmp_path):
    result = invoke("train", "--data", "data", "--config", tmp_path / "no.toml", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: the recipe {tmp_path}/no.toml cannot be read")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("packages", [["matplotlib"], ["torch", "matplotlib"]], ids=len)
def test_without_its_packages_train_names_the_pip_command(packages):
    result = run_without(packages, "train", "--data", "d", "--config", "r.toml", "-o", "o")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: this command needs {', '.join(packages)} (not installed); install on the "
        f"workstation, not on the device: {install_command('cpu', 'train')}\n"
    )


# ---- eval ----


@dataclass
class Evaluation:
    """The part that the command uses; the model's F1 is 0.4."""

    model: Path
    rows = (SimpleNamespace(free_running=SimpleNamespace(f1=0.4)),)

    def to_json(self):
        return {"model": str(self.model)}


@pytest.fixture
def evaluates(stand_in, monkeypatch):
    """The calls of `evaluate`; its table is one line."""
    monkeypatch.setattr(
        evaluate_view,
        "print_evaluation",
        lambda found, is_verbose: out.print(
            f"of {found.model}" + ", with transcripts" * is_verbose
        ),
    )
    return stand_in(evaluate_module, "evaluate", lambda model, *_: Evaluation(model))


def test_eval_prints_a_table_transcripts_or_json(evaluates):
    arguments = ("eval", "ck", "--data", "data")
    assert succeeds(*arguments).stdout == "of ck\n"
    assert succeeds(*arguments, "--verbose").stdout == "of ck, with transcripts\n"
    assert json.loads(succeeds(*arguments, "--json").stdout) == {"model": "ck"}


def test_eval_fails_below_the_required_f1(evaluates):
    succeeds("eval", "ck", "--data", "data", "--least-f1", "0.4")
    result = invoke("eval", "ck", "--data", "data", "--least-f1", "0.41")
    assert result.exit_code == 1
    assert "error: F1 is 0.400, wanted 0.41 or more" in result.stderr


def test_eval_defaults_to_the_test_split_and_the_checkpoints_threshold(evaluates):
    assert succeeds("eval", "ck", "--data", "data").stderr == "eval: a part (25%)\n"
    (call,) = evaluates
    assert call.pop("on_step")
    assert call == {
        "model": Path("ck"),
        "data": Path("data"),
        "split": "test",
        "max_clips": None,
        "tolerance_s": 1.0,
        "threshold": None,
        "backend": "auto",
        "device": "auto",
        "profile": None,
        "controls": False,
    }


def test_eval_passes_its_options_on(evaluates):
    succeeds(
        *("eval", "bundle", "--data", "data", "--split", "validation", "--clips", 3),
        *("--tolerance", 0.5, "--threshold", 0.7, "--backend", "onnx", "--device", "cpu"),
        *("--profile", "rtx-ada", "--controls"),
    )
    (call,) = evaluates
    names = ("split", "max_clips", "tolerance_s", "threshold", "backend", "device", "profile")
    assert [call[name] for name in names] == ["validation", 3, 0.5, 0.7, "onnx", "cpu", "rtx-ada"]
    assert call["controls"] is True


def test_a_data_error_is_one_line(stand_in):
    def refuses(*_):
        raise DataError("data has no test.jsonl")

    stand_in(evaluate_module, "evaluate", refuses)
    result = invoke("eval", "ck", "--data", "data")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: data has no test.jsonl"
