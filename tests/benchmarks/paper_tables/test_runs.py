"""Runs: carried out once, resumed, limited in time; and one from end to end."""

import json
from dataclasses import replace

import pytest

from benchmarks.paper_tables import runs as runs_module
from benchmarks.paper_tables.arms import PLAN
from benchmarks.paper_tables.report import write_page
from benchmarks.paper_tables.results import (
    Result,
    read_json,
    read_result,
    result_path,
)
from benchmarks.paper_tables.runs import Comparison, carry_out, carry_out_all
from benchmarks.paper_tables.settings import STANDARD, Settings
from mod_edge.errors import DataError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.training.recipe import TrainConfig

pytestmark = pytest.mark.numeric

SETTINGS = Settings(
    text_config={"hidden_size": 32, "intermediate_size": 48},
    train=TrainConfig(
        trainable=("connector", "model", "lm_head"),
        steps=3,
        batch_clips=1,
        max_frames=6,
        learning_rate=1e-3,
        save_every=1,
        device="cpu",
    ),
    thresholds=(0.0, 1.0),
    num_validation_clips=1,
    num_test_clips=None,
    tolerance_s=1.0,
)


@pytest.fixture
def comparison(data, tiny_checkpoint, tmp_path):
    return Comparison(
        data, Checkpoint(tiny_checkpoint), tmp_path / "work", tmp_path / "results", SETTINGS
    )


@pytest.fixture
def pretended(monkeypatch, planted_result):
    """Planted results instead of runs, a minute each: the names of the runs in order."""
    names, clock = [], [0.0]

    def pretend(comparison, run, _on_step):
        names.append(run.name)
        clock[0] += 60
        return replace(planted_result(run), settings=comparison.identity(run))

    monkeypatch.setattr(runs_module, "carry_out", pretend)
    monkeypatch.setattr(runs_module.time, "monotonic", lambda: clock[0])
    return names


def carry_on(comparison, runs=PLAN, max_minutes=None):
    return carry_out_all(
        comparison, runs, max_minutes=max_minutes, on_step=silent, on_result=lambda _run: None
    )


def silent(_name, _done, _total):
    """A progress callback that shows nothing."""


def test_finished_runs_are_not_repeated(comparison, pretended):
    assert carry_on(comparison, PLAN[:2]) == []
    assert carry_on(comparison, PLAN[:4]) == []
    assert pretended == [run.name for run in PLAN[:4]]


def test_no_run_starts_that_would_end_too_late(comparison, pretended):
    left = carry_on(comparison, PLAN[:5], max_minutes=2.5)
    assert pretended == [run.name for run in PLAN[:2]]
    assert left == [*PLAN[2:5]]


def test_the_first_run_starts_even_without_time(comparison, pretended):
    assert carry_on(comparison, PLAN[:2], max_minutes=0) == [PLAN[1]]


def test_all_results_with_other_settings_are_named_before_any_run(comparison, pretended):
    carry_on(comparison, PLAN[:2])
    other = replace(comparison, settings=replace(SETTINGS, tolerance_s=2.0))
    with pytest.raises(DataError) as error:
        carry_on(other)
    for run in PLAN[:2]:
        assert f"{run.name}.json: measuring.tolerance_s was 1.0, is 2.0" in str(error.value)
    assert len(pretended) == 2


def test_a_stop_keeps_finished_results(comparison, pretended, monkeypatch):
    pretend = runs_module.carry_out

    def stop_at_the_second(comparison, run, on_step):
        if len(pretended) == 1:
            raise KeyboardInterrupt
        return pretend(comparison, run, on_step)

    monkeypatch.setattr(runs_module, "carry_out", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        carry_on(comparison, PLAN[:3])
    assert [path.name for path in comparison.results.iterdir()] == [f"{PLAN[0].name}.json"]


def test_runs_differ_only_in_arm_and_seed(comparison):
    first, *others = (comparison.identity(run) for run in PLAN)
    for other in others:
        merged = {
            **other,
            "model": {**other["model"], "mod_config": first["model"]["mod_config"]},
            "train": {**other["train"], "seed": first["train"]["seed"]},
        }
        assert merged == first


def test_runs_with_other_settings_have_other_folders(comparison):
    other = replace(comparison, settings=replace(SETTINGS, num_validation_clips=2))
    assert comparison.folder(PLAN[0]) != other.folder(PLAN[0])
    assert len({comparison.folder(run) for run in PLAN}) == len(PLAN)


def test_the_standard_geometry_is_deep_enough_for_all_insertions_to_differ(comparison):
    standard = replace(comparison, settings=STANDARD)
    layers = {standard.recipe(run).model.mod_layers for run in PLAN if run.seed == 0}
    # none, every second, every second deep, all, and all deep, like early exit
    assert len(layers) == 5


def test_a_run_from_end_to_end(comparison, tmp_path):
    run = PLAN[1]
    assert run.name == "mod-0"
    assert carry_on(comparison, [run]) == []
    result = read_result(result_path(comparison.results, run))
    assert isinstance(result, Result)
    assert result.choice["threshold"] in SETTINGS.thresholds
    assert result.evaluation["thresholds"] == {
        "teacher_forced": 0.0,
        "free_running": result.choice["threshold"],
    }
    assert [len(each) for each in result.losses.values()] == [3, 3]
    assert result.row()["teacher_forced"]["lm_ppl"] > 1
    assert {*result.time_s} == {"train", "choose", "measure"}
    assert str(tmp_path) not in json.dumps(vars(result))
    assert "transcripts" not in result.evaluation
    write_page(comparison.results, tmp_path / "results.md")


def test_a_resumed_run_has_the_same_figures(comparison, tmp_path):
    run = PLAN[1]
    whole = carry_out(comparison, run, silent)
    other = replace(comparison, work=tmp_path / "other")

    def stop(name, done, _total):
        if "loss" in name and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(other, run, stop)
    resumed = carry_out(other, run, silent)
    assert resumed.losses == whole.losses
    assert resumed.row() == whole.row()
    assert resumed.choice == whole.choice


def test_a_finished_training_is_not_repeated(comparison):
    run = PLAN[1]
    first = carry_out(comparison, run, silent)
    told = []
    again = carry_out(comparison, run, lambda name, _done, _total: told.append(name))
    assert not any("loss" in name for name in told)
    assert again.row() == first.row()
    assert again.time_s["train"] == first.time_s["train"]
    assert read_json(comparison.folder(run) / "training.json")["report"]["steps"] == 3
