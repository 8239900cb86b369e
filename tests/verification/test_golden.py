"""Golden files: a bundle is compared with them without PyTorch, and by Polygraphy alone."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import load_json
from typer.testing import CliRunner

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.manifest import MANIFEST_FILE, read_manifest, record_file
from mod_edge.commands.app import app
from mod_edge.errors import BundleError, ConfigError
from mod_edge.model.presets import preset_config
from mod_edge.native.installed import install_command
from mod_edge.plan.signature import bundle_signatures, layer_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.verification.golden import (
    DOCUMENT,
    GOLDEN,
    STREAM_FILE,
    Golden,
    GoldenWriter,
    require_numpy_dtypes,
)
from mod_edge.verification.recording import AFTER_ROLL
from mod_edge.verification.stream_check import StreamResult
from mod_edge.verification.verify import verify_bundle, verify_golden
from tests.commands.mod_edge_command import run_without
from tests.conftest import CAPACITY
from tests.export import graph_faults

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
GRAPHS = [signature.name for signature in bundle_signatures(CONFIG, CPU_FP32)]
MOD = layer_signature(CONFIG, 1, CPU_FP32)
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def golden(tiny_bundle, recorded_stream, recording_of, tmp_path_factory):
    """Golden files of the tiny bundle; copy them before changing them."""
    folder = tmp_path_factory.mktemp("golden")
    writer = GoldenWriter(folder, read_manifest(tiny_bundle), "torch fp32")
    for signature in bundle_signatures(CONFIG, CPU_FP32):
        writer.add_graph(recording_of(signature, CPU_FP32))
    writer.add_stream(recorded_stream[2], None)
    writer.finish()
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


# ---- without PyTorch ----


def test_a_bundle_is_compared_with_golden_files(tiny_bundle, golden):
    report = verify_golden(tiny_bundle, golden)
    assert report.is_ok
    assert [result.graph for result in report.graphs] == GRAPHS
    (stream,) = report.streams
    assert (stream.status, stream.other_answers) == ("ok", [])
    assert stream.num_rolls >= 3


def test_the_command_needs_neither_torch_nor_onnx(tiny_bundle, golden):
    packages = ["torch", "onnx", "onnxscript", "safetensors", "onnx_graphsurgeon"]
    result = run_without(packages, "verify", tiny_bundle, "--golden", golden, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ok"] is True


def test_the_command_needs_no_folder_for_temporary_files(tiny_bundle, golden):
    options = ("--golden", golden, "--graph", "layer-01")
    done = run_without(["torch", "onnx"], "verify", tiny_bundle, *options, has_temporary=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "options", "says"),
    [
        ("polygraphy", "--golden golden", f"install: {install_command('cpu', 'verify')}"),
        (
            "torch",
            "--checkpoint ck",
            f"install on the workstation, not on the device: {install_command('cpu', 'export')}",
        ),
    ],
)
def test_what_is_not_installed_is_named(missing, options, says):
    result = run_without([missing], "verify", "bundle", *options.split())
    assert result.returncode == 1
    assert result.stderr == f"error: this command needs {missing} (not installed); {says}\n"


def test_a_faulty_bundle_fails_with_the_command_that_shows_more(golden, tiny_bundle, tmp_path):
    # Golden files contain the graph's hash, so the fault has to be in the golden files.
    folder = shutil.copytree(golden, tmp_path / "golden")
    outputs = RunResults.load(str(folder / "layer-01" / "outputs.json"))
    outputs[0][1][1]["new_value"][0] += 1
    outputs.save(str(folder / "layer-01" / "outputs.json"))
    trust_again(folder)
    result = invoke(tiny_bundle, "--golden", folder)
    assert result.exit_code == 1
    assert "first bad row new_value[0, " in result.stdout
    assert f"--golden {folder} --graph layer-01 --verbose" in result.stderr


def trust_again(folder):
    """Update the manifest to the files as they are now."""
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_text())
    document["files"] = {name: vars(record_file(folder / name)) for name in document["files"]}
    DOCUMENT.write(path, document)


# ---- Polygraphy alone ----


def polygraphy_run(golden, bundle, graph):
    """The result of the graph's `polygraphy run` command in the golden files."""
    entry = json.loads((golden / MANIFEST_FILE).read_text())["graphs"][graph]
    program, *options = shlex.split(entry["polygraphy"].replace("BUNDLE", str(bundle)))
    assert program == "polygraphy"
    code = "from polygraphy.tools._main import main; import sys; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=golden,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("graph", ["layer-00", "layer-01"])
def test_polygraphys_own_command_passes(golden, tiny_bundle, graph):
    result = polygraphy_run(golden, tiny_bundle, graph)
    assert result.returncode == 0, result.stdout[-2000:]
    assert "PASSED | Runtime" in result.stdout


def test_polygraphys_own_command_fails_on_a_faulty_graph(golden, tiny_bundle, tmp_path):
    (tmp_path / "layers").mkdir()
    graph_faults.copy_graph(
        tiny_bundle / MOD.file, tmp_path / "layers", graph_faults.swapped_gate_and_up
    )
    result = polygraphy_run(golden, tmp_path, "layer-01")
    assert result.returncode != 0
    assert "FAILED | Runtime" in result.stdout


def test_golden_files_are_in_polygraphys_own_format(golden, recording_of):
    feeds = load_json(str(golden / "layer-01" / "inputs.json"))
    (entry,) = RunResults.load(str(golden / "layer-01" / "outputs.json")).items()
    name, iterations = entry
    assert name == "torch fp32"
    assert len(feeds) == len(iterations)
    recording = recording_of(MOD, CPU_FP32)
    kinds = json.loads((golden / MANIFEST_FILE).read_text())["graphs"]["layer-01"]["steps"]
    numbers = [[step.kind for step in recording.steps].index(kind) for kind in kinds]
    right = recording.outputs({})
    for feed, outputs, number in zip(feeds, iterations, numbers, strict=True):
        np.testing.assert_equal(dict(feed), dict(recording.steps[number].inputs))
        np.testing.assert_equal(dict(outputs.items()), right[number])


# ---- which steps are saved ----


def test_of_each_kind_of_step_the_one_after_a_roll_is_saved(golden):
    kinds = json.loads((golden / MANIFEST_FILE).read_text())["graphs"]["layer-00"]["steps"]
    assert "first" in kinds
    assert "many frames" + AFTER_ROLL in kinds
    assert "many frames" not in kinds


def test_steps_with_a_tie_are_not_saved(tiny_bundle, recording_of, tmp_path):
    recording = recording_of(MOD, CPU_FP32)
    first, *others = recording.steps
    logits = np.ones_like(first.router_logits)
    steps = (replace(first, router_logits=logits), *others)
    writer = GoldenWriter(tmp_path, read_manifest(tiny_bundle), "torch fp32")
    writer.add_graph(replace(recording, steps=steps))
    writer.finish()
    kinds = json.loads((tmp_path / MANIFEST_FILE).read_text())["graphs"]["layer-01"]["steps"]
    assert "first" not in kinds
    assert "decode" in kinds or "decode" + AFTER_ROLL in kinds


# ---- saving ----


def test_verify_saves_golden_files(recorded, tiny_bundle, tiny_checkpoint, tmp_path):
    folder = tmp_path / "golden"
    options = ("--checkpoint", tiny_checkpoint, "--save-golden", folder)
    result = invoke(tiny_bundle, *options)
    assert result.exit_code == 0, result.output
    assert f"wrote {folder}" in result.stdout
    assert {path.name for path in folder.iterdir()} == {*GRAPHS, MANIFEST_FILE, STREAM_FILE}
    assert GOLDEN.foreign_files(folder) == []
    assert verify_golden(tiny_bundle, folder).is_ok


def test_golden_files_of_one_graph_are_compared_with_that_graph_alone(
    recorded, tiny_bundle, tiny_checkpoint, tmp_path
):
    folder = tmp_path / "golden"
    verify_bundle(tiny_bundle, tiny_checkpoint, graph="layer-01", golden=folder)
    assert {path.name for path in folder.iterdir()} == {"layer-01", MANIFEST_FILE}
    report = verify_golden(tiny_bundle, folder)
    assert report.is_ok
    statuses = {result.graph: result.status for result in report.graphs}
    assert statuses == {**dict.fromkeys(GRAPHS, "not run"), "layer-01": "ok"}
    assert report.streams == [
        StreamResult("every backend", "not run", "no golden files of the stream")
    ]


def test_force_replaces_golden_files_and_nothing_else(
    recorded, tiny_bundle, tiny_checkpoint, tmp_path
):
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    save = {"graph": "layer-01", "golden": folder}
    with pytest.raises(ConfigError, match="exists already; use --force"):
        verify_bundle(tiny_bundle, tiny_checkpoint, **save)
    with pytest.raises(ConfigError, match="was not made by this command"):
        verify_bundle(tiny_bundle, tiny_checkpoint, force=True, **save)
    (folder / "thesis.txt").unlink()
    for graph in ("layer-01", "layer-02"):
        verify_bundle(tiny_bundle, tiny_checkpoint, graph=graph, golden=folder, force=True)
    assert {path.name for path in folder.iterdir()} == {"layer-02", MANIFEST_FILE}
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"delete: thesis\.txt; move them away"):
        verify_bundle(tiny_bundle, tiny_checkpoint, force=True, **save)


def test_bfloat16_is_refused():
    require_numpy_dtypes(Lowering("rtx", "fp16", CAPACITY))
    with pytest.raises(ConfigError, match="numpy has no bfloat16; save those of"):
        require_numpy_dtypes(Lowering("rtx", "bf16", CAPACITY))


# ---- what is refused ----


@pytest.fixture
def changed(golden, tmp_path):
    """`changed(change)`: a changed copy of the golden files."""

    def make(change) -> Path:
        folder = shutil.copytree(golden, tmp_path / "golden")
        change(folder)
        return folder

    return make


def of_another_layer(folder):
    document = json.loads((folder / MANIFEST_FILE).read_text())
    document["graphs"]["layer-01"]["bundle_files"]["layers/01.data"] = "0" * 64
    DOCUMENT.write(folder / MANIFEST_FILE, document)


def with_a_changed_file(folder):
    (folder / "head" / "inputs.json").write_text("[]")


def without_a_file(folder):
    (folder / STREAM_FILE).unlink()


def with_a_shorter_list(folder):
    (folder / "head" / "inputs.json").write_text("[]")
    trust_again(folder)


def with_nested_brackets(folder):
    (folder / "head" / "inputs.json").write_text("[" * 100_000)
    trust_again(folder)


def with_a_broken_stream(folder):
    (folder / STREAM_FILE).write_bytes(b"PK\3\4 no archive")
    trust_again(folder)


def without_a_manifest(folder):
    (folder / MANIFEST_FILE).unlink()


def with_an_edited_manifest(folder):
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text().replace("layer-00", "layer-09"))


def with_a_manifest_of_something_else(folder):
    (folder / MANIFEST_FILE).write_text('{"format_version": 1, "graphs": {}, "reference": "x"}')


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_another_layer, r"golden files of a different layers/01\.onnx; save them again with"),
        (with_a_changed_file, r"is damaged: head/inputs\.json missing or changed"),
        (without_a_file, r"is damaged: stream\.npz missing or changed"),
        (with_a_shorter_list, "head is damaged"),
        (with_nested_brackets, "head is damaged"),
        (with_a_broken_stream, r"stream\.npz is damaged"),
        (without_a_manifest, "has no golden files; save"),
        (with_an_edited_manifest, "has changed since it was written"),
        (with_a_manifest_of_something_else, "is damaged .*files"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_or_foreign_golden_files_are_refused(changed, tiny_bundle, change, says):
    with pytest.raises(BundleError, match=says):
        verify_golden(tiny_bundle, changed(change))


def test_golden_files_follow_no_selection(golden, tiny_bundle):
    recording = Golden(golden, open_bundle(tiny_bundle)).recording(MOD)
    assert all(step.router_logits is None for step in recording.steps)
    with pytest.raises(AssertionError, match="no ties to follow"):
        recording.outputs({0: np.zeros((1, 2), np.int64)})
