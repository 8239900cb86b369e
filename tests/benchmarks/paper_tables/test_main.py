"""The command: what it refuses, and that it writes the page of what is there."""

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.paper_tables import __main__ as command
from benchmarks.paper_tables.report import STEP_COST_FILE

APP = typer.Typer()
APP.command()(command.main)


@pytest.fixture
def call(tmp_path, tiny_checkpoint, monkeypatch):
    """`call(*options)`: the command's outcome where two runs are left and no pictures drawn."""
    monkeypatch.setattr(command, "carry_out_all", lambda _comparison, runs, **_: [*runs[1:3]])
    monkeypatch.setattr("benchmarks.paper_tables.report.draw_all", lambda *_: None)
    monkeypatch.setattr(command, "measure_step_cost", lambda *_, **__: {"sizes": []})

    def invoke(*options):
        folders = {"data": tmp_path, "base": tiny_checkpoint, "runs": tmp_path / "results"}
        arguments = [f"--{name}={folder}" for name, folder in folders.items()]
        return CliRunner().invoke(APP, [*arguments, f"--write={tmp_path / 'page.md'}", *options])

    return invoke


def test_an_unknown_arm_lists_the_known_ones(call):
    outcome = call("--only", "modd")
    assert outcome.exit_code == 1
    assert "no arm modd; there are full, mod, early-exit" in " ".join(outcome.stderr.split())


def test_the_page_is_written_and_what_is_left_is_named(call, plant, tmp_path):
    plant(tmp_path / "results", "mod-0")
    outcome = call("--only", "mod")
    assert outcome.exit_code == 0, outcome.stderr
    assert "left: mod-1, mod-2" in outcome.stdout
    assert (tmp_path / "page.md").is_file()


def test_step_cost_is_measured_once_and_not_for_single_arms(call, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "write_page", lambda *_: None)
    cost = tmp_path / "results" / STEP_COST_FILE
    call("--only", "mod")
    assert not cost.exists()
    call()
    cost.write_text("kept")
    call()
    assert cost.read_text() == "kept"


def test_a_stop_says_how_to_go_on(call, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "carry_out_all", stop)
    outcome = call()
    assert outcome.exit_code == 130
    assert "stopped; the same command goes on" in outcome.stderr
