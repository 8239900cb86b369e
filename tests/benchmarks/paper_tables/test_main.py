"""The command: its errors, and the page that it writes."""

from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.paper_tables import __main__ as command
from benchmarks.paper_tables.arms import PLAN
from benchmarks.paper_tables.report import STEP_COST_FILE
from benchmarks.paper_tables.results import result_path, write_document, write_result
from benchmarks.paper_tables.runs import Comparison
from benchmarks.paper_tables.settings import STANDARD
from mod_edge.model.checkpoint import Checkpoint
from tests.benchmarks.paper_tables.test_report import STEP_COST

APP = typer.Typer()
APP.command()(command.main)


@pytest.fixture
def call(data, tiny_checkpoint, tmp_path):
    """`call(*options)`: the command's outcome; its outputs are in `tmp_path`."""

    def invoke(*options):
        folders = {
            "data": data,
            "base": tiny_checkpoint,
            "runs": tmp_path / "results",
            "work": tmp_path / "work",
            "write": tmp_path / "page.md",
        }
        arguments = [f"--{name}={folder}" for name, folder in folders.items()]
        return CliRunner().invoke(APP, [*arguments, *options])

    return invoke


@pytest.fixture
def all_done(data, tiny_checkpoint, planted_result, tmp_path):
    """The folder with planted results of all runs."""
    results = tmp_path / "results"
    base = Checkpoint(tiny_checkpoint)
    comparison = Comparison(data, base, tmp_path / "work", results, STANDARD)
    for run in PLAN:
        result = replace(planted_result(run), settings=comparison.identity(run))
        write_result(result_path(results, run), result)
    return results


def test_an_unknown_arm_lists_the_known_ones(call):
    outcome = call("--only", "modd")
    assert outcome.exit_code == 1
    assert "unknown arm modd; known are full, mod, early-exit" in " ".join(outcome.stderr.split())


def test_with_all_results_only_the_page_is_written(call, all_done, tmp_path):
    write_document(all_done / STEP_COST_FILE, STEP_COST)
    before = {path.name: path.read_bytes() for path in all_done.iterdir()}
    outcome = call()
    assert outcome.exit_code == 0, outcome.stderr
    assert "missing" not in outcome.stdout
    assert f"{len(PLAN)} of {len(PLAN)} runs are done." in (tmp_path / "page.md").read_text()
    assert before == {name: (all_done / name).read_bytes() for name in before}
    assert not (tmp_path / "work").exists()


def test_single_arms_measure_no_step_cost(call, all_done):
    assert call("--only", "mod").exit_code == 0
    assert not (all_done / STEP_COST_FILE).exists()


def test_missing_runs_are_named(call, all_done, monkeypatch):
    monkeypatch.setattr(command, "carry_out_all", lambda _comparison, runs, **_: [*runs[1:3]])
    assert "missing runs: mod-1, mod-2" in " ".join(call("--only", "mod").stdout.split())


def test_a_stopped_command_says_how_to_continue(call, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "carry_out_all", stop)
    outcome = call("--only", "mod")
    assert outcome.exit_code == 130
    assert "stopped; the same command continues" in outcome.stderr
