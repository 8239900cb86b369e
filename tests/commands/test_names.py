"""Files and folders whose names are not UTF-8, as old cameras and archives leave them."""

import json
import os
import shutil

import pytest

from tests.commands.mod_edge_command import invoke, succeeds

NAME = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\udce9"


def fails(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr.splitlines()[-1]


def test_a_video_is_watched(tiny_bundle, clip, tmp_path):
    shutil.copy(clip, tmp_path / f"{NAME}.mp4")
    arguments = ("run", tiny_bundle, "--source", tmp_path / f"{NAME}.mp4", "--max-frames", 2)
    assert json.loads(succeeds(*arguments, "--json").stdout.splitlines()[-1])["num_frames"] == 2


def test_errors_show_the_bytes_of_a_name(tiny_bundle, tmp_path):
    missing = tmp_path / f"{NAME}.mp4"
    assert f"{SHOWN}.mp4; check the path" in fails("run", tiny_bundle, "--source", missing)


def test_a_bundle_is_inspected_but_not_run(tiny_bundle, clip, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / NAME)
    assert SHOWN in succeeds("inspect", bundle).stdout
    result = invoke("run", bundle, "--source", clip)
    assert result.exit_code == 2  # no restart repairs an argument
    said = "".join(result.stderr.replace("│", "").split())
    assert f"{SHOWN}/vision.onnx'isnotUTF-8" in said
    assert "renamethefileorfolder" in said


@pytest.mark.parametrize(
    "arguments",
    [("export", "CHECKPOINT", "-o", NAME), ("scenes", NAME, "--train", 1)],
    ids=["export", "scenes"],
)
def test_output_is_refused_before_the_work(tiny_checkpoint, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    given = [tiny_checkpoint if each == "CHECKPOINT" else each for each in arguments]
    assert f"'{SHOWN}' is not UTF-8" in fails(*given)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_written_but_not_read(tmp_path):
    succeeds("init", "tiny", tmp_path / NAME)
    written = sorted(path.name for path in (tmp_path / NAME).iterdir())
    assert written == ["config.json", "model.safetensors", "tokenizer.json"]
    assert f"{SHOWN}/model.safetensors' is not UTF-8" in fails("inspect", tmp_path / NAME)
