"""Choosing a checkpoint's threshold and writing it to its config."""

import math
import shutil
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mod_edge.commands.app import app
from mod_edge.config import read_config
from mod_edge.data.clips import read_clips
from mod_edge.errors import ConfigError
from mod_edge.evaluation.thresholds import adopt_threshold, choose_threshold
from tests.file_size_limit import file_size_limit


def silent(_name, _done, _total):
    pass


def threshold_of(folder):
    return read_config(folder / "config.json").stream_config.frame_token_interval_threshold


@pytest.mark.parametrize(
    ("f1", "moment_f1", "best"),
    [
        ((0.4, 0.5, 0.5, None), (0.9, 0.5, 0.5, None), 0.4),
        ((0.4, 0.5, 0.5, None), (0.9, 0.5, 0.6, None), 0.6),
        ((0.0, 0.0, 0.0, None), (0.0, 0.0, 0.0, 0.1), 0.8),
    ],
)
def test_the_best_threshold_by_f1_then_moments_then_order(
    monkeypatch, data, tiny_checkpoint, f1, moment_f1, best
):
    tried = [0.2, 0.4, 0.6, 0.8]

    class Score:
        def __init__(self, clip_frames, _fps, _tolerance_s):
            number = tried.index(clip_frames[0][1])
            self.f1, self.moment_f1 = f1[number], moment_f1[number]

    monkeypatch.setattr("mod_edge.evaluation.thresholds.score", Score)
    monkeypatch.setattr(
        "mod_edge.evaluation.thresholds.run_free", lambda *_, threshold, seed: threshold
    )
    clips = read_clips(data, "test")
    choice = choose_threshold(tiny_checkpoint, clips, tried, tolerance_s=1.0, on_step=silent)
    assert choice.threshold == best
    assert choice.f1 == tuple(each or 0.0 for each in f1)
    assert not choice.is_arbitrary


def test_a_bundle_is_refused(tiny_bundle):
    with pytest.raises(ConfigError, match="is a bundle"):
        choose_threshold(tiny_bundle, [], [0.5], tolerance_s=1.0, on_step=silent)


def test_a_tolerance_that_is_no_number_is_refused(tiny_checkpoint):
    with pytest.raises(ConfigError, match="tolerance=nan, wanted a number of seconds"):
        choose_threshold(tiny_checkpoint, [], [0.0], tolerance_s=math.nan, on_step=silent)


def test_an_adopted_threshold_is_written_to_the_config(write_tiny):
    folder = write_tiny(None)
    before = read_config(folder / "config.json")
    adopt_threshold(folder, 0.31)
    after = read_config(folder / "config.json")
    assert after.stream_config.frame_token_interval_threshold == 0.31
    assert replace(after, stream_config=before.stream_config) == before


def test_a_full_disk_leaves_the_config_as_it_was(write_tiny):
    folder = write_tiny(None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="File too large") as caught, file_size_limit(100):
        adopt_threshold(folder, 0.5)
    assert caught.value.filename == str(folder / "config.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_writes_the_chosen_threshold(data, write_tiny, tmp_path):
    folder, clips = write_tiny(None), tmp_path / "data"
    shutil.copytree(data, clips)
    shutil.copyfile(clips / "test.jsonl", clips / "validation.jsonl")
    adopt_threshold(folder, 0.9)
    argv = ["threshold", str(folder), "--data", str(clips), "--clips", "1", "--threshold", "0.25"]
    assert "threshold 0.25 written to" in run_command(argv)
    assert threshold_of(folder) == 0.25
    assert "all thresholds score the same" in run_command([*argv, "--threshold", "0.25"])


def run_command(argv):
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0, done.output
    return done.output
