"""The threshold of a checkpoint: the best on validation, and written where it belongs."""

import runpy
import shutil
import sys
from dataclasses import replace

import pytest

from mod_edge.config import read_config
from mod_edge.errors import ConfigError
from mod_edge.evaluation import thresholds as thresholds_module
from mod_edge.evaluation.thresholds import adopt_threshold, choose_threshold
from mod_edge.training.clips import read_clips


def silent(_name, _done, _total):
    pass


def threshold_of(folder):
    return read_config(folder / "config.json").stream_config.frame_token_interval_threshold


def test_the_best_threshold_is_taken_and_of_equals_the_first(monkeypatch, data, tiny_checkpoint):
    f1 = {0.2: 0.4, 0.4: 0.5, 0.6: 0.5, 0.8: None}

    class Score:
        def __init__(self, watched, _fps, _tolerance_s):
            self.f1 = f1[watched[0][1]]

    monkeypatch.setattr(thresholds_module, "score", Score)
    monkeypatch.setattr(thresholds_module, "run_free", lambda *_, threshold, seed: threshold)
    clips = read_clips(data, "test")
    choice = choose_threshold(tiny_checkpoint, clips, [*f1], tolerance_s=1.0, on_step=silent)
    assert choice.threshold == 0.4
    assert choice.f1 == (0.4, 0.5, 0.5, 0.0)


def test_a_bundle_is_left_as_it_was_exported(tiny_bundle):
    with pytest.raises(ConfigError, match="is a bundle"):
        choose_threshold(tiny_bundle, [], [0.5], tolerance_s=1.0, on_step=silent)


def test_an_adopted_threshold_is_the_checkpoints_own(write_tiny):
    folder = write_tiny(None)
    before = read_config(folder / "config.json")
    adopt_threshold(folder, 0.31)
    after = read_config(folder / "config.json")
    assert after.stream_config.frame_token_interval_threshold == 0.31
    assert replace(after, stream_config=before.stream_config) == before


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # runpy, of a module already there
def test_the_command_writes_what_it_chose(data, write_tiny, tmp_path, monkeypatch, capsys):
    folder, clips = write_tiny(None), tmp_path / "data"
    shutil.copytree(data, clips)
    shutil.copyfile(clips / "test.jsonl", clips / "validation.jsonl")
    adopt_threshold(folder, 0.9)
    argv = [str(folder), "--data", str(clips), "--threshold", "0.25", "--clips", "1"]
    monkeypatch.setattr(sys, "argv", ["thresholds", *argv])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(thresholds_module.__name__, run_name="__main__")
    assert not ended.value.code
    assert "0.25 is now the threshold of" in capsys.readouterr().out
    assert threshold_of(folder) == 0.25
