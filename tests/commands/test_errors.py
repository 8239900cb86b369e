"""Bad input: an error, exit code 1 (2 for wrong usage), no traceback, nothing written or lost."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mod_edge.bundle import bundle as bundle_module
from mod_edge.bundle import manifest as manifest_module
from mod_edge.config import MoDConfig
from mod_edge.verification import verify as verify_module
from tests.commands.mod_edge_command import finish, invoke, start, succeeds
from tests.runtime.capture.mjpeg_camera import MjpegServer

WEIGHTS = "model.safetensors"
# Beginnings of lines that may come before an error.
PROGRESS = ("export: ", "target ", "weights ", "backend ", "window ")


def fails(*arguments):
    """The one line of error of a command that must exit with 1."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(PROGRESS)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].isprintable()
    return lines[0]


def is_usage_error(*arguments):
    """The message of a command that must exit with 2, in one line."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert any(line.startswith("Usage: mod-edge") for line in lines)
    assert all(line.isprintable() for line in lines)
    return " ".join(result.stderr.replace("│", " ").split())


def tree_of(folder):
    """Every file in the folder with its contents."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, to be damaged."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy of the tiny bundle, to be damaged."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def change_json(path, *keys, value):
    document = json.loads(path.read_text())
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(document))


def flip_byte(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# ---- checkpoints ----


def refuses_to_export(checkpoint, tmp_path):
    """The error that `export` and `inspect` both print; neither writes anything."""
    before = tree_of(tmp_path)
    line = fails("export", checkpoint, "-o", tmp_path / "out")
    assert fails("inspect", checkpoint) == line
    assert tree_of(tmp_path) == before
    assert not (tmp_path / "out").exists()
    return line


def test_missing_unknown_and_misshapen_tensors_are_all_named(checkpoint, tmp_path):
    tensors = load_file(checkpoint / WEIGHTS)
    del tensors["model.layers.1.router.weight"]
    del tensors["connector.2.bias"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:95].clone()
    tensors["lm_head.bias"] = tensors["model.norm.weight"].clone()
    save_file(tensors, checkpoint / WEIGHTS)
    line = refuses_to_export(checkpoint, tmp_path)
    for part in (
        "no tensor 'model.layers.1.router.weight'",
        "no tensor 'connector.2.bias'",
        "'model.norm.weight' is F32 [95] in model.safetensors, config.json wants [96]",
        "unknown tensor 'lm_head.bias'",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("mod_config", "insertion"), "interleavd", "did you mean 'interleaved'?"),
        (
            ("mod_config", "keepratio"),
            0.2,
            "unknown field 'mod_config.keepratio' (did you mean 'keep_ratio'?)",
        ),
        (("stream_config", "stream_end_id"), 33, "stream_end ']\\n' is tokens"),
        (("text_config", "vocab_size"), 100, "vocab_size is 100"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_config_value_is_named_with_the_allowed_ones(
    checkpoint, tmp_path, keys, value, says
):
    change_json(checkpoint / "config.json", *keys, value=value)
    assert says in refuses_to_export(checkpoint, tmp_path)


def test_an_id_beyond_the_embedding_is_named_before_anything_is_made(checkpoint, tmp_path):
    path = checkpoint / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["Ġ<600>"] = vocabulary.pop("Ġ<511>") + 89  # as many tokens as before
    path.write_text(json.dumps(document))
    assert "'Ġ<600>' is 600" in refuses_to_export(checkpoint, tmp_path)


def test_a_missing_checkpoint_says_how_to_create_one(tmp_path):
    line = fails("export", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert "is not a checkpoint" in line
    assert "mod-edge init tiny" in line
    assert "presets are tiny, 135m, 1b, 8b" in fails("inspect", tmp_path / "nowhere")


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_a_name_on_the_hub_gives_the_command_that_downloads_it(command):
    line = fails(command, "HuggingFaceTB/SmolLM2-135M")
    assert "hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M" in line


def test_nan_weights_are_named_before_anything_is_written(checkpoint, tmp_path):
    weights = load_file(checkpoint / WEIGHTS)
    weights["model.norm.weight"][5] = float("nan")
    save_file(weights, checkpoint / WEIGHTS)
    line = refuses_to_export(checkpoint, tmp_path)
    assert "'model.norm.weight' (1 NaN, 0 infinite of 96)" in line


def test_an_unknown_preset_lists_the_known_ones_with_the_nearest_hint(tmp_path):
    line = fails("init", "tini", tmp_path / "new")
    assert (
        "preset='tini', wanted one of narrator, tiny, 135m, 1b, 8b (did you mean 'tiny'?)" in line
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", ["a", "2-1", "7", ""])
def test_invalid_layers_are_rejected_before_anything_is_written(tiny_checkpoint, tmp_path, layers):
    line = fails("export", tiny_checkpoint, "-o", tmp_path / "out", "--layers", layers)
    assert "numbers and ranges like 0-1" in line or "wanted 0 to 5" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--profile", "rtx-adda"),
            "unknown profile 'rtx-adda' (did you mean 'rtx-ada'?), known are",
        ),
        (("--target", "rtx"), "profile 'cpu' is for devices with cpu, not for target 'rtx'"),
        (("--target", "cup"), "unknown target 'cup' (did you mean 'cpu'?)"),
        (("--precision", "fp16"), "target cpu supports fp32, not 'fp16'"),
        (("--window", "60s"), "target cpu has no fixed window"),
        (("--build",), "target cpu has no engines"),
        (("--profile", "jetson-thor"), "name the device's target with --target"),
    ],
    ids=" ".join,
)
def test_an_impossible_lowering_is_rejected_before_anything_is_written(
    tiny_checkpoint, tmp_path, options, says, monkeypatch
):
    monkeypatch.setattr(
        "mod_edge.export.lowering_choice.installed_targets", lambda: {"cpu": "onnxruntime"}
    )
    assert says in fails("export", tiny_checkpoint, "-o", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mod", "says"),
    [
        (MoDConfig(selection="random"), "mod_config.selection='random' is for comparison only"),
        (MoDConfig("early_exit"), "mod_config.insertion='early_exit' is for comparison only"),
        (MoDConfig("layer_skip"), "mod_config.insertion='layer_skip' is for comparison only"),
    ],
    ids=lambda value: getattr(value, "insertion", ""),
)
@pytest.mark.parametrize("options", [(), ("--profile", "rtx-ada", "--target", "rtx")], ids=len)
def test_comparison_baselines_are_not_exported(write_tiny, tmp_path, options, mod, says):
    line = fails("export", write_tiny(mod), "-o", tmp_path / "out", *options)
    assert says in line
    assert "evaluate the checkpoint with mod-edge eval" in line
    assert not list(tmp_path.iterdir())


# ---- existing folders ----


def test_an_existing_folder_is_kept_without_force(tiny_checkpoint, checkpoint, bundle, tmp_path):
    before = tree_of(tmp_path)
    assert "exists already; use --force" in fails("init", "tiny", checkpoint)
    assert "exists already; use --force" in fails("export", tiny_checkpoint, "-o", bundle)
    assert tree_of(tmp_path) == before


def test_force_never_replaces_a_folder_that_no_command_made(tiny_checkpoint, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    before = tree_of(tmp_path)
    for command in (("init", "tiny"), ("export", tiny_checkpoint, "-o")):
        assert "--force does not replace it" in fails(*command, tmp_path / "home", "--force")
    assert tree_of(tmp_path) == before


def test_an_unwritable_place_is_an_error(tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "cannot be written" in fails("init", "tiny", tmp_path / "file" / "new")
    assert "cannot be written" in fails("export", tiny_checkpoint, "-o", tmp_path / "file" / "new")


# ---- sources ----


def test_a_source_that_names_nothing_is_a_usage_error_before_the_bundle_is_read(tmp_path):
    for source, says in (
        ("300", "camera 300 is outside 0..255"),
        (" ", "the source has no name"),
        ("csi://\x1b[31m", "csi:// [31m is not a CSI camera"),
    ):
        said = is_usage_error("run", tmp_path / "nowhere", "--source", source)
        assert f"Invalid value for --source: {says}" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--source", "test://", "--keep", "every"), "every frame cannot be kept"),
        (("--source", "CLIP", "--keep", "newest"), "box.mp4 has an end"),
        (("--source", "CLIP", "--reconnect", "60s"), "box.mp4 has an end"),
        (("--source", "CLIP", "--image-fps", "5"), "only with a folder, a glob or an image"),
        (("--source", "FOLDER", "--image-fps", "0"), "fps=0.0: wanted more than 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_policy_that_is_not_for_the_source_is_a_usage_error_before_the_bundle_is_read(
    tmp_path, clip, options, says
):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((8, 8, 3), np.uint8))
    places = {"CLIP": clip, "FOLDER": tmp_path}
    arguments = [places.get(option, option) for option in options]
    assert says in is_usage_error("run", tmp_path / "nowhere", *arguments)


@pytest.mark.live
def test_a_stream_that_ends_by_itself_is_an_error_after_the_summary(tiny_bundle, tmp_path):
    recorded = tmp_path / "events.jsonl"
    with MjpegServer(num_pictures=20) as camera:
        result = invoke("run", tiny_bundle, "--source", camera.url, "--events", recorded)
    assert result.exit_code == 1
    failure, summary = map(json.loads, recorded.read_text().splitlines()[-2:])
    assert (failure["event"], summary["event"]) == ("failure", "summary")
    assert "ended after 20 frames" in failure["message"]
    assert result.stdout.splitlines()[-1].startswith("cache")
    assert re.search(
        r"^error: http.* ended after 20 frames .* check its server", result.stderr, re.M
    )


# ---- bundles ----


def test_a_missing_bundle_says_how_to_create_one(tmp_path, clip):
    line = fails("run", tmp_path / "nowhere", "--source", clip)
    assert "is not a bundle (no manifest.json)" in line
    assert "mod-edge export CHECKPOINT -o" in line


def test_a_changed_byte_in_a_large_file_is_found_by_check(bundle, clip, monkeypatch):
    monkeypatch.setattr(manifest_module, "SMALL_FILE_BYTES", 100_000)
    flip_byte(bundle / "vision.data")
    run = ("run", bundle, "--source", clip, "--max-frames", 1)
    succeeds(*run)
    assert "vision.data has changed since it was exported" in fails(*run, "--check")


def test_all_damaged_files_are_named(bundle, clip):
    (bundle / "head.onnx").unlink()
    flip_byte(bundle / "layers" / "00.onnx")
    with (bundle / "embedding.npy").open("ab") as file:
        file.write(b"x")
    line = fails("run", bundle, "--source", clip)
    for part in ("head.onnx is missing", "layers/00.onnx has changed", "embedding.npy has 196737"):
        assert part in line


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("config.json", ("text_config", "num_key_value_heads"), 3),
        ("config.json", ("text_config", "vocab_size"), 600),
        ("config.json", ("mod_config", "keep_ratio"), 0.5),
        ("config.json", ("mod_config", "insertion"), "all"),
        ("config.json", ("frame_token_pooled",), [2, 2]),
        ("tokenizer.json", ("model",), {}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_graphs_that_do_not_fit_the_bundles_config_are_not_run(bundle, clip, name, keys, value):
    """Even with a corrected hash: wrong dims would be read as addresses."""
    change_json(bundle / name, *keys, value=value)
    manifest = manifest_module.read_manifest(bundle)
    files = manifest.files | {name: manifest_module.record_file(bundle / name)}
    manifest_module.write_manifest(replace(manifest, files=files), bundle)
    assert "export the checkpoint again" in fails("run", bundle, "--source", clip)


# ---- sources and settings ----


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"not a video, only words", "cannot be read as a video"), (b"", "is empty (0 bytes)")],
)
def test_a_file_that_is_not_a_video_is_named(tiny_bundle, tmp_path, content, says):
    path = tmp_path / "words.mp4"
    path.write_bytes(content)
    assert says in fails("run", tiny_bundle, "--source", path)


def test_a_missing_video_is_found_before_the_bundle_is_read(tiny_checkpoint, tmp_path, monkeypatch):
    for module in (bundle_module, verify_module):
        monkeypatch.setattr(module, "open_bundle", lambda *_, **__: pytest.fail("was read"))
    options = ("--source", tmp_path / "a.mp4")
    assert "there is no video file" in fails("run", tmp_path, *options)
    assert "there is no video file" in fails(
        "verify", tmp_path, "--checkpoint", tiny_checkpoint, *options
    )


def test_a_missing_video_a_folder_and_a_missing_camera_are_errors(tiny_bundle, tmp_path):
    assert "there is no video file" in fails("run", tiny_bundle, "--source", tmp_path / "a.mp4")
    assert "is empty; name a folder of images" in fails("run", tiny_bundle, "--source", tmp_path)
    assert "camera 97 cannot be opened" in fails("run", tiny_bundle, "--camera", 97)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--window", "100"), "window=100 is too small: the sink, one frame and"),
        (("--window", "soon"), "window='soon', wanted seconds like 120s or tokens like 4096"),
        (("--kv-budget", "0.1"), "kv-budget=0.1 MiB is too small"),
        (("--kv-budget", "inf"), "wanted a finite number"),
        (("--window", "4096", "--kv-budget", "3"), "got both window and kv_budget"),
        (("--window", "260", "--query", "why " * 300), "has 260; raise --window or"),
        (("--window", "260", "--query", "why " * 300 + "@9"), "a reply to 'why why why"),
        (("--threshold", "1.5"), "Invalid value for '--threshold'"),
        (("--threshold", "nan"), "Invalid value for '--threshold'"),
        (("--max-frames", "0"), "Invalid value for '--max-frames'"),
        (("--max-new-tokens", "0"), "Invalid value for '--max-new-tokens'"),
        (("--frames-per-step", "0"), "Invalid value for '--frames-per-step'"),
        (("--frames-per-step", "99"), "lower --frames-per-step"),
        (("--temperature", "-1"), "Invalid value for '--temperature'"),
        (("--temperature", "inf"), "temperature=inf, wanted 0 (greedy) or more"),
        (("--temperature", "1", "--top-p", "0"), "top_p=0.0, wanted a probability above 0"),
        (("--seed", "3"), "seed=3 have no effect with temperature=0"),
        (("--stop", ""), "a stop text is empty"),
        (("--profile", "cpo"), "unknown profile 'cpo' (did you mean 'cpu'?), known are cpu"),
        (("--backend", "onx"), "backend='onx', wanted one of auto, tensorrt, onnx, torch"),
        (("--backend", "torch"), "give --backend torch and --checkpoint CHECKPOINT together"),
        (("--checkpoint", "ck"), "give --backend torch and --checkpoint CHECKPOINT together"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_wrong_setting_is_a_usage_error(tiny_bundle, clip, options, says):
    assert says in is_usage_error("run", tiny_bundle, "--source", clip, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--window", "300", "--query", "why " * 300), "the window has 300"),
        (("--profile", "cpo"), "unknown profile 'cpo'"),
        (("--backend", "onx"), "backend='onx', wanted one of auto"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, tuple) else "",
)
def test_a_wrong_setting_of_text_alone_is_a_usage_error(tiny_bundle, options, says):
    assert says in is_usage_error("run", tiny_bundle, "--query", "What?", *options)


def test_a_window_that_this_machine_has_no_memory_for_is_an_error(tiny_bundle, clip):
    line = fails("run", tiny_bundle, "--source", clip, "--window", "999999999999s")
    assert "does not fit in this machine's memory" in line


def test_the_reference_needs_the_bundles_own_checkpoint(tiny_bundle, checkpoint, clip):
    flip_byte(checkpoint / WEIGHTS)
    options = ("--backend", "torch", "--checkpoint", checkpoint)
    line = fails("run", tiny_bundle, "--source", clip, *options)
    assert "is not the checkpoint that the bundle was made from" in line


def test_control_characters_of_a_path_never_reach_the_terminal(tmp_path, clip):
    line = fails("run", tmp_path / "a\x1b[31mb\n\x07c", "--source", clip)  # fails() checks
    assert "a [31mb  c is no" in line


def test_an_onnxruntime_that_does_not_load_is_one_line(tiny_bundle, clip, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('wrong ELF class: ELFCLASS32')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    line = fails("run", tiny_bundle, "--source", clip)
    assert "cannot be imported: wrong ELF class: ELFCLASS32; pip install --force-reinst" in line


# ---- queries ----


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("x@-1", "ends with '@-1'"),
        ("", "is empty"),
        ("@5", "is empty"),
        ("x\udce9", "byte 0xE9"),
        ("x@1e999", "at inf"),
    ],
)
def test_a_query_that_cannot_be_asked_is_a_usage_error_before_any_work(tmp_path, query, says):
    arguments = ("run", tmp_path / "no bundle", "--source", "x.mp4", "--query", "fine@3")
    result = invoke(*arguments, "--query", query)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert "--query" in result.stderr


@pytest.mark.parametrize("written", [b"caf\xe9", "café".encode()], ids=["Latin-1", "UTF-8"])
def test_a_query_in_an_encoding_other_than_the_locales_is_a_usage_error(tmp_path, written):
    arguments = ("run", tmp_path / "no bundle", "--source", "x.mp4")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    process = start(*arguments, "--query", os.fsdecode(written), environment=plain)
    printed, said = finish(process)
    assert (process.returncode, printed) == (2, "")
    assert "character 4 is byte 0x" in " ".join(said.replace("|", " ").split())
    assert "Traceback" not in said
