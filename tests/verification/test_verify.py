"""`mod-edge verify`: whole bundles against their checkpoint, the report, the command."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from mod_edge.bundle.manifest import read_manifest, record_file, write_manifest
from mod_edge.commands.app import app
from mod_edge.commands.verification_view import print_failure, print_report
from mod_edge.errors import BundleError, ConfigError, SourceError
from mod_edge.model.presets import preset_config, write_random_checkpoint
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.verification.graph_check import GraphResult, OutputError
from mod_edge.verification.reference_stream import MAX_FRAMES, MIN_ROLLS, record_stream
from mod_edge.verification.sample_video import SampleVideo
from mod_edge.verification.stream_check import StreamResult
from mod_edge.verification.verify import EVERY_GRAPH, VerifyReport, verify_bundle

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
GRAPHS = [signature.name for signature in bundle_signatures(CONFIG, CPU_FP32)]


@pytest.fixture
def copied(tiny_bundle, tmp_path):
    """`copied(change)`: a bundle with changed files and a manifest that lists them as changed."""

    def make(change=lambda _folder: None):
        folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
        change(folder)
        manifest = read_manifest(folder)
        files = {name: record_file(folder / name) for name in manifest.files}
        write_manifest(replace(manifest, files=files), folder)
        return folder

    return make


def one_changed_weight(folder):
    """One value of layer 1's value projection is off by half."""
    model = onnx.load(str(folder / "layers" / "01.onnx"), load_external_data=False)
    (tensor,) = [
        tensor for tensor in model.graph.initializer if tensor.name == "self_attn.v_proj.weight"
    ]
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    weights = np.memmap(folder / "layers" / "01.data", np.float32, "r+", offset=offset)
    weights[7] += 0.5
    weights.flush()


def invoke(*arguments):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


# ---- whole bundles ----


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp32"), ("cuda", "fp16")])
def test_a_healthy_bundle_is_all_green(recorded, any_bundle, tiny_checkpoint, target, precision):
    report = verify_bundle(any_bundle(target, precision), tiny_checkpoint)
    assert report.is_ok
    assert report.bad_graphs == []
    graphs = {(result.graph, result.backend) for result in report.graphs if result.status == "ok"}
    names = GRAPHS if target == "cpu" else [*GRAPHS, "rebase"]
    in_streams = ["onnx CPU"] if precision == "fp32" else ["torch fp16", "onnx CPU"]
    backends = in_streams if precision == "fp32" else [*in_streams, "onnx evaluator"]
    assert graphs == {(name, backend) for name in names for backend in backends}
    streams = {stream.backend: stream.status for stream in report.streams}
    assert {streams[backend] for backend in in_streams} == {"ok"}
    missing = {result.backend for result in report.graphs if result.status == "not run"}
    assert missing == ({"onnx CUDA"} if target == "cuda" else set())
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["ok"] is True


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_for_tensorrt_are_compared_on_the_cpu_graph_by_graph(
    recorded, bundle_for, tiny_checkpoint, precision
):
    report = verify_bundle(bundle_for("rtx", precision), tiny_checkpoint)
    assert report.is_ok, [result.reason for result in report.graphs]
    cpu = "onnx CPU" if precision == "fp32" else "onnx CPU (widened)"
    compared = {result.graph for result in report.graphs if result.backend == cpu}
    assert compared == {*GRAPHS, "rebase"}
    reasons = {result.backend: result.reason for result in (*report.graphs, *report.streams)}
    assert "only done graph by graph" in reasons["onnx CPU"]
    assert reasons["TensorRT-RTX"], "why the engines were not run"


def test_a_bad_graph_is_named_and_the_stream_fails_too(recorded, copied, tiny_checkpoint):
    report = verify_bundle(copied(one_changed_weight), tiny_checkpoint)
    assert not report.is_ok
    assert report.bad_graphs == ["layer-01"]
    (stream,) = report.streams
    assert stream.status == "failed"


def test_one_graph_is_compared_without_the_others_and_the_stream(
    recorded, tiny_bundle, tiny_checkpoint
):
    steps = []
    report = verify_bundle(
        tiny_bundle,
        tiny_checkpoint,
        graph="layer-03",
        on_step=lambda *step: steps.append(step),
    )
    assert [result.graph for result in report.graphs] == ["layer-03"]
    assert report.streams == []
    assert report.is_ok
    assert steps == [("reference", 0, 1), ("layer-03", 0, 2)]


def test_an_unknown_graph_lists_the_known_ones(tiny_bundle, tiny_checkpoint):
    with pytest.raises(
        ConfigError, match=r"no graph 'layer-3' \(did you mean 'layer-03'\?\).*vision"
    ):
        verify_bundle(tiny_bundle, tiny_checkpoint, graph="layer-3")


def test_a_partial_bundle_is_compared_graph_by_graph(recorded, copied, tiny_checkpoint):
    folder = copied()
    manifest = read_manifest(folder)
    write_manifest(replace(manifest, layers=[0, 1]), folder)
    report = verify_bundle(folder, tiny_checkpoint)
    assert [result.graph for result in report.graphs] == ["vision", "layer-00", "layer-01", "head"]
    assert report.is_ok
    assert [(stream.status, stream.reason) for stream in report.streams] == [
        ("not run", "the bundle does not contain all layers")
    ]


# ---- what is refused ----


def test_another_checkpoint_is_refused(tiny_bundle, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_random_checkpoint(CONFIG, other, seed=2)
    with pytest.raises(BundleError, match="is not the checkpoint that the bundle was made from"):
        verify_bundle(tiny_bundle, other)


def test_a_damaged_file_is_refused_whatever_its_size(tiny_bundle, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    one_changed_weight(folder)
    with pytest.raises(BundleError, match=r"layers/01\.data has changed since"):
        verify_bundle(folder, tiny_checkpoint)


def test_a_video_that_is_too_short_is_refused(recorded_stream, tiny_checkpoint):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    model, _, _ = recorded_stream
    with pytest.raises(ConfigError, match=rf"has 4 frames .* rolled . times, wanted {MIN_ROLLS}"):
        record_stream(model, tokenizer, SampleVideo(2.0, 4), CPU_FP32)


def test_a_video_file_is_a_source(tiny_bundle, tiny_checkpoint, clip):
    report = verify_bundle(tiny_bundle, tiny_checkpoint, source=clip, graph="vision")
    assert report.is_ok
    with pytest.raises(SourceError, match=r"none\.mp4"):
        verify_bundle(tiny_bundle, tiny_checkpoint, source=clip.with_name("none.mp4"))


def test_the_generated_video_is_always_the_same_and_moves():
    first, again = ([frame.image for frame in SampleVideo(2.0, MAX_FRAMES)] for _ in range(2))
    assert len(first) == MAX_FRAMES
    np.testing.assert_array_equal(first, again)
    changed = [(one != other).mean() for one, other in pairwise(first)]
    assert min(changed) > 0.01
    assert max(changed) > 0.3, "scenes change"


# ---- the command ----


def test_the_command_prints_every_graph_and_ends_with_0(recorded, tiny_bundle, tiny_checkpoint):
    result = invoke(tiny_bundle, "--checkpoint", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.endswith("ok")]
    assert [row[0] for row in rows] == [*GRAPHS, "stream"]
    assert len({line.index("ok") for line in lines if line.endswith("ok")}) == 1, "aligned"
    assert "torch fp32 (torch " in result.stdout
    assert "0 different" in result.stdout
    assert "verify: reference (0%)" in result.stderr


def test_a_bad_graph_ends_with_1_and_the_command_that_shows_more(recorded, copied, tiny_checkpoint):
    folder = copied(one_changed_weight)
    result = invoke(folder, "--checkpoint", tiny_checkpoint)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "failed layer-01, onnx CPU: first: first bad row new_" in result.stdout
    assert "error: 1 of 8 graphs differs from the reference, first layer-01" in result.stderr
    command = f"mod-edge verify {folder} --checkpoint {tiny_checkpoint} --graph layer-01 --verbose"
    assert f"hint: {command}" in result.stderr
    shown = invoke(*command.split()[2:])
    assert shown.exit_code == 1
    assert "kept [[" in shown.stdout
    assert "margin at the cut" in shown.stdout
    assert "] of [1, 40]" in shown.stdout, "the first bad row of new_hidden"


def test_json_is_one_document_with_every_number(recorded, copied, tiny_checkpoint):
    result = invoke(copied(one_changed_weight), "--checkpoint", tiny_checkpoint, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["ok"], document["bad_graphs"]) == (False, ["layer-01"])
    by_name = {graph["graph"]: graph for graph in document["graphs"]}
    assert by_name["layer-01"]["outputs"][0]["first_bad_row"]
    assert by_name["layer-01"]["selections"][0]["margin"] > 0
    assert by_name["layer-00"]["status"] == "ok"
    assert document["streams"][0]["num_rolls"] >= MIN_ROLLS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give one of --checkpoint"),
        (("--checkpoint", "ck", "--golden", "golden"), "give one of --checkpoint"),
        (("--golden", "golden", "--source", "video.mp4"), "need --checkpoint"),
        (("--golden", "golden", "--save-golden", "new"), "need --checkpoint"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(options, says):
    result = invoke("bundle", *options)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


# ---- the view of results that no machine here gives ----


def report_of(graphs=(), streams=(), weight_format="as-dtype"):
    lowering = Lowering("cpu", "fp32", weight_format=weight_format)
    return VerifyReport("b", "torch", lowering, [], list(graphs), list(streams), 1)


def test_a_report_in_which_nothing_was_run_is_not_ok(capsys):
    report = report_of([GraphResult(EVERY_GRAPH, "onnx CUDA", "not run", "no CUDA here")])
    assert not report.is_ok
    print_report(report, is_verbose=True)
    print_failure(report, "--golden g")
    printed = capsys.readouterr()
    assert "not run every graph, onnx CUDA: no CUDA here" in printed.out
    assert "error: no graph could be run here" in printed.err


def test_the_mean_is_that_of_the_named_output_over_all_steps(capsys):
    def error(output, largest, mean, num_rows):
        return OutputError("first", output, largest, mean, largest, 1.0, (num_rows, 4), None)

    outputs = [
        error("new_hidden", 3e-3, 1e-5, 1),
        error("new_hidden", 1e-3, 5e-5, 3),
        error("present_key", 2e-3, 7e-5, 1),
    ]
    graph = GraphResult(
        "layer-00", "onnx CPU", "ok", allowed=5e-2, outputs=outputs, allowed_mean=3e-4
    )
    print_report(report_of([graph], weight_format="int8"), is_verbose=False)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("layer-00")]
    assert row[3:6] == ["new_hidden", "3.0e-03", "4.0e-05"]
    (header,) = [line for line in lines if line.startswith("graph")]
    assert header.split("allowed")[1].split("  ")[1:] == ["cost max", "cost mean", "cost cosine"]


def test_a_stream_that_fails_alone_has_its_own_error(capsys):
    graphs = [GraphResult("head", "onnx CPU", "ok", allowed=1e-5)]
    report = report_of(graphs, [StreamResult("onnx CPU", "failed", "logits are off by 1")])
    assert not report.is_ok
    print_failure(report, "--checkpoint ck")
    printed = capsys.readouterr().err
    assert "error: every graph agrees with the reference, but the whole stream does not" in printed
    assert "hint: mod-edge verify b --checkpoint ck --json" in printed


def test_a_stream_that_is_not_judged_passes_and_the_report_says_why(capsys):
    graphs = [GraphResult("head", "onnx CPU", "ok", allowed=1e-5)]
    stream = StreamResult("onnx CPU", "not judged", "sound and faulty streams look alike")
    report = report_of(graphs, [stream])
    assert report.is_ok
    print_report(report, is_verbose=False)
    assert "not judged stream, onnx CPU: sound and faulty streams look alike" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert not report_of([], [stream]).is_ok, "nothing was judged"
