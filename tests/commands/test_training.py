"""`scenes`, `train` and `eval`: what is asked reaches the library, and what it says is printed.

The library's functions are stand-ins here; each has tests of its own.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mod_edge.commands import evaluation_view as evaluate_view
from mod_edge.commands.app import app
from mod_edge.commands.console import out
from mod_edge.errors import DataError
from mod_edge.evaluation import evaluate as evaluate_module
from mod_edge.native.installed import install_command
from mod_edge.toy_scenes import scenes as scenes_module
from mod_edge.toy_scenes.motion_loss import motion_loss
from mod_edge.training import recipe as recipe_module
from mod_edge.training import train as train_module
from mod_edge.training.train import TrainingReport
from tests.commands.test_processes import run_without

RECIPE = "a recipe"
REPORT = TrainingReport(Path("out"), 300, 40, 884_000, 710_400, 0.25, 0.0625, 61.4, 0)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in(module, name, does)`: replaces a function; the list of what it is called with."""

    def replace(module, name, does):
        signature, calls = inspect.signature(getattr(module, name)), []

        def called(*args, **kwargs):
            # what the real one would not take is an error here too
            calls.append(signature.bind(*args, **kwargs).arguments)
            kwargs["on_step"]("a part", 1, 4)
            return does(*args)

        monkeypatch.setattr(module, name, called)
        return calls

    return replace


# ---- scenes ----


def test_scenes_makes_the_data_set_that_was_asked_for(stand_in, tmp_path):
    calls = stand_in(scenes_module, "write_scenes", lambda *_: None)
    counts = ("--train", 7, "--validation", 2, "--test", 3, "--combinations", 4)
    result = succeeds("scenes", tmp_path, *counts, "--seed", 5, "--force")
    assert result.stdout == (
        f"wrote {tmp_path}: 7 train, 2 validation, 3 test, 4 combinations clips, seed 5\n"
    )
    assert result.stderr == "scenes: a part (25%)\n"
    (call,) = calls
    assert call.pop("on_step")
    assert call == {
        "folder": tmp_path,
        "counts": {"train": 7, "validation": 2, "test": 3, "combinations": 4},
        "seed": 5,
        "photographs": None,
        "duration_s": 30.0,
        "force": True,
    }


def test_scenes_knows_every_split_that_can_be_made(stand_in, tmp_path):
    calls = stand_in(scenes_module, "write_scenes", lambda *_: None)
    succeeds("scenes", tmp_path)
    assert list(calls[0]["counts"]) == [split.name for split in scenes_module.SPLITS]


# ---- train ----


@pytest.fixture
def reads_recipe(monkeypatch):
    monkeypatch.setattr(recipe_module, "read_recipe", lambda path: f"{RECIPE} in {path}")


def test_train_says_what_it_made_in_one_line(reads_recipe, stand_in):
    calls = stand_in(train_module, "train", lambda *_: REPORT)
    arguments = ("train", "--data", "data", "--config", "mine.toml", "-o", "out")
    assert succeeds(*arguments).stdout == (
        "wrote out: 884.0 kparameters, 710.4 k of them trained in 300 steps on 40 clips; "
        "loss 0.250 of replies, 0.062 of decisions; 61 s\n"
    )
    assert json.loads(succeeds(*arguments, "--json").stdout) == REPORT.to_json()
    succeeds(*arguments, "--resume", "--force")
    for call in calls:
        assert call.pop("on_step")
        assert call.pop("resume") == call.pop("force") == (call is calls[-1])
        assert call == {
            "data": Path("data"),
            "recipe": f"{RECIPE} in mine.toml",
            "output": Path("out"),
            "auxiliary_losses": {"motion": motion_loss},
        }


@pytest.mark.parametrize(
    ("has_state", "says"),
    [
        (True, "stopped; the same command with --resume goes on"),
        (False, "stopped; nothing was left half-made"),
    ],
)
def test_a_stopped_training_says_how_to_go_on(reads_recipe, stand_in, tmp_path, has_state, says):
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
def test_without_its_packages_train_says_what_to_install(packages):
    result = run_without(packages, "train", "--data", "d", "--config", "r.toml", "-o", "o")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: this command needs {', '.join(packages)}, not installed here; on the machine "
        f"where checkpoints are trained: {install_command('cpu', 'train')}\n"
    )


# ---- eval ----


@dataclass
class Evaluation:
    """As much of one as the commands touch; its model has an F1 of 0.4."""

    model: Path
    rows = (SimpleNamespace(free_running=SimpleNamespace(f1=0.4)),)

    def to_json(self):
        return {"model": str(self.model)}


@pytest.fixture
def evaluates(stand_in, monkeypatch):
    """The calls of `evaluate`, whose table is one line."""
    monkeypatch.setattr(
        evaluate_view,
        "print_evaluation",
        lambda found, is_verbose: out.print(f"of {found.model}" + ", at length" * is_verbose),
    )
    return stand_in(evaluate_module, "evaluate", lambda model, *_: Evaluation(model))


def test_eval_prints_a_table_or_one_document(evaluates):
    assert succeeds("eval", "ck", "--data", "data").stdout == "of ck\n"
    assert json.loads(succeeds("eval", "ck", "--data", "data", "--json").stdout) == {"model": "ck"}


def test_eval_prints_all_that_was_said_where_that_is_asked_for(evaluates):
    result = succeeds("eval", "ck", "--data", "data", "--verbose")
    assert result.stdout == "of ck, at length\n"


def test_eval_fails_below_the_bar(evaluates):
    succeeds("eval", "ck", "--data", "data", "--least-f1", "0.4")
    result = invoke("eval", "ck", "--data", "data", "--least-f1", "0.41")
    assert result.exit_code == 1
    assert "error: F1 is 0.400, wanted 0.41 or more" in result.stderr


def test_eval_measures_the_test_split_as_the_checkpoint_says(evaluates):
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


def test_eval_passes_on_what_is_asked(evaluates):
    succeeds(
        *("eval", "bundle", "--data", "data", "--split", "validation", "--clips", 3),
        *("--tolerance", 0.5, "--threshold", 0.7, "--backend", "onnx", "--device", "cpu"),
        *("--profile", "rtx-ada", "--controls"),
    )
    (call,) = evaluates
    asked = [call[name] for name in ("split", "max_clips", "tolerance_s", "threshold")]
    assert asked == ["validation", 3, 0.5, 0.7]
    assert [call[name] for name in ("backend", "device", "profile")] == ["onnx", "cpu", "rtx-ada"]
    assert call["controls"] is True


def test_a_fault_of_the_data_is_one_line(stand_in):
    def refuses(*_):
        raise DataError("data has no test.jsonl")

    stand_in(evaluate_module, "evaluate", refuses)
    result = invoke("eval", "ck", "--data", "data")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: data has no test.jsonl"
