"""The commands on valid input: what they print, to which stream, and their exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
from typer.main import get_command

from mod_edge import __version__
from mod_edge.bundle.engine_manifest import read_engine_manifests
from mod_edge.bundle.manifest import check_files, read_manifest, write_manifest
from mod_edge.commands.app import app
from mod_edge.commands.console import printable, si
from mod_edge.config import MoDConfig
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import GEOMETRIES, preset_config, write_random_checkpoint
from mod_edge.plan.targets import TARGETS
from tests.commands.mod_edge_command import invoke, succeeds
from tests.export.topologies import read_topologies, untraced
from tests.frame_layouts import one_token

COMMANDS = get_command(app).commands
QUERY = "Please narrate the video in real time."


def events_of(result):
    """The JSON objects that a run printed, one per line and nothing else."""
    return [json.loads(line) for line in result.stdout.splitlines()]


# ---- help and usage ----


def test_the_version_is_printed():
    assert succeeds("--version").stdout == f"mod-edge {__version__}\n"


def test_the_commands_load_without_numpy_and_tokenizers_so_that_doctor_can_report_them():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('numpy', 'tokenizers', 'cv2', 'torch'))); "
        "import mod_edge.commands.app, mod_edge.doctor.diagnosis"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options_and_exit_codes(command):
    text = succeeds(command, "--help").stdout
    assert "Exit codes" in text
    assert "Usage" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("init", "tiny"),
        ("scenes", "data", "--train", "-1"),
        ("train", "--data", "data", "-o", "out"),
        ("train", "--data", "data", "--config", "recipe.toml"),
        ("eval", "checkpoint"),
        ("eval", "checkpoint", "--data", "data", "--text", "text.txt"),
        ("eval", "checkpoint", "--data", "data", "--window-tokens", "64"),
        ("eval", "checkpoint", "--text", "text.txt", "--window-tokens", "1"),
        ("eval", "checkpoint", "--text", "text.txt", "--clips", "3"),
        ("eval", "checkpoint", "--data", "data", "--clips", "0"),
        ("eval", "checkpoint", "--data", "data", "--tolerance", "-1"),
        ("inspect", "tiny", "--frames", "0"),
        ("run", "bundle"),
        ("run", "bundle", "--query", "text@12"),
        ("run", "bundle", "--query", "text", "--max-frames", "3"),
        ("run", "bundle", "--camera", "-1"),
        ("run", "bundle", "--camera", "256"),
    ],
    ids=" ".join,
)
def test_a_usage_error_exits_with_2_and_prints_no_result(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage" in result.stderr
    assert "Traceback" not in result.stderr


# ---- init ----


def test_init_writes_a_checkpoint_and_says_so_in_one_line(tmp_path):
    folder = tmp_path / "tiny"
    result = succeeds("init", "tiny", folder, "--seed", 3)
    assert result.stdout == f"wrote {folder}: preset tiny, 3.5 MB of random weights, seed 3\n"
    assert Checkpoint(folder).config == preset_config("tiny")


def test_a_seed_for_trained_weights_is_an_error(tmp_path):
    result = invoke("init", "narrator", tmp_path / "model", "--seed", 3)
    assert result.exit_code == 1
    assert "narrator is trained, omit --seed" in result.stderr
    assert not (tmp_path / "model").exists()


def test_init_with_force_replaces_and_a_seed_repeats(tmp_path):
    folder = tmp_path / "tiny"
    succeeds("init", "tiny", folder, "--seed", 3)
    before = Checkpoint(folder).fingerprint()
    succeeds("init", "tiny", folder, "--seed", 4, "--force")
    assert Checkpoint(folder).fingerprint() != before
    succeeds("init", "tiny", folder, "--seed", 3, "--force")
    assert Checkpoint(folder).fingerprint() == before


@pytest.mark.parametrize("name", ["a[/b]", "a[red]b", ":car:", "ä b", "a\x1b[31m\nb"])
def test_folders_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    try:
        os.fsencode(folder)
    except UnicodeEncodeError:
        pytest.skip(f"paths here are in {sys.getfilesystemencoding()}, which lacks a character")
    result = succeeds("init", "tiny", folder)
    assert result.stdout.startswith(f"wrote {printable(str(folder))}: preset tiny")
    assert result.stdout.count("\n") == 1
    assert succeeds("inspect", folder).stdout.startswith(printable(str(folder)))


# ---- inspect ----


def test_inspect_json_is_one_document_for_preset_checkpoint_and_bundle(
    tiny_checkpoint, tiny_bundle
):
    documents = [
        json.loads(succeeds("inspect", target, "--json").stdout)
        for target in ("tiny", tiny_checkpoint, tiny_bundle)
    ]
    assert len({document.pop("name") for document in documents}) == 3
    assert [document.pop("bundle") is None for document in documents] == [True, True, False]
    assert documents[0] == documents[1] == documents[2]
    document = documents[0]
    assert document["mod_layers"] == [1, 3, 5]
    assert (document["frame_num_tokens"], document["num_kept"]) == (10, 2)
    assert document["decoder"]["with_interval"]["kv_ratio"] == 0.6364  # the paper's 7 of 11 rows
    assert document["decoder"]["frames_only"]["kv_ratio"] == 0.6
    parts = document["parameters"]
    assert parts.pop("total") == sum(parts.values())


def test_inspect_of_a_bundle_shows_what_it_is_made_for(tiny_bundle, bundle_for):
    size = si(read_manifest(tiny_bundle).size_bytes, "B")
    lines = succeeds("inspect", tiny_bundle).stdout.splitlines()
    assert f"bundle             target cpu, fp32, {size}" in lines
    assert not any(line.startswith(("window", "decoder layers", "engines")) for line in lines)
    quantized = succeeds("inspect", bundle_for("cpu", "fp32", "int8")).stdout
    assert "bundle             target cpu, fp32, int8 weights, " in quantized
    document = json.loads(succeeds("inspect", tiny_bundle, "--json").stdout)["bundle"]
    assert document["lowering"] == {"target": "cpu", "precision": "fp32", "capacity": None}
    assert document["layers"] == list(range(6))
    assert document["engines"] == []


def test_inspect_of_a_bundle_shows_its_engines_and_fixed_window(built_bundle):
    text = succeeds("inspect", built_bundle).stdout
    assert re.search(r"^window +\d+ tokens, fixed in the graphs$", text, re.MULTILINE)
    assert re.search(
        r"^engines +9 of 9, TensorRT-RTX [\d.]+, compute capability 8\.9, profile rtx-ada$",
        text,
        re.MULTILINE,
    )
    (engines,) = json.loads(succeeds("inspect", built_bundle, "--json").stdout)["bundle"]["engines"]
    assert engines["profile"] == "rtx-ada"
    assert {"head", "layer-00", "vision"} <= set(engines["graphs"])


def test_inspect_of_a_bundle_shows_the_layers_of_a_part(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "part")
    write_manifest(replace(read_manifest(bundle), layers=[0, 1]), bundle)
    assert "decoder layers     0, 1 (the model has 6)" in succeeds("inspect", bundle).stdout


def test_inspect_of_a_name_that_is_a_preset_and_a_folder_says_how_to_name_each(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    result = invoke("inspect", "tiny")
    assert result.exit_code == 1
    assert "tiny is a preset, and there is a folder of that name" in " ".join(result.stderr.split())


@pytest.mark.parametrize("preset", GEOMETRIES)
def test_inspect_shows_every_preset_beside_full_computation(preset):
    lines = succeeds("inspect", preset).stdout.splitlines()
    assert lines[0].startswith(f"{preset}: ")
    header = next(line for line in lines if "full computation" in line)
    assert "mean of 600" in header
    (ratio,) = [line.split()[-1] for line in lines if line.startswith("KV cache (float32), frame")]
    assert ratio == "0.600"


@pytest.mark.parametrize(
    ("mod", "num_mod", "routing"),
    [
        (None, 0, "none: full computation"),
        (
            MoDConfig(),
            3,
            "interleaved, learned, keep_ratio 0.2, router_scaling full",
        ),
        (MoDConfig("all", 0.5, "random"), 6, "all, random, keep_ratio 0.5"),
        (MoDConfig("layer_skip"), 3, "none: layer_skip, MoD layers compute no vision token"),
        (
            MoDConfig("early_exit", exit_layer=4),
            2,
            "none: early_exit, MoD layers from layer 4 on compute no vision token",
        ),
    ],
    ids=["full", "learned", "random", "layer_skip", "early_exit"],
)
def test_inspect_says_how_a_checkpoint_routes(write_tiny, mod, num_mod, routing):
    lines = succeeds("inspect", write_tiny(mod)).stdout.splitlines()
    assert f"routing            {routing}" in lines
    assert lines[1].endswith(f": {6 - num_mod} dense, {num_mod} MoD")


def test_inspect_of_a_model_without_an_interval_shows_frames_alone(tmp_path):
    write_random_checkpoint(one_token(preset_config("tiny")), tmp_path, seed=1)
    text = succeeds("inspect", tmp_path).stdout
    assert "1 token, 1 computed in a MoD layer" in text
    assert "frame tokens only" in text
    assert "interval" not in text
    decoder = json.loads(succeeds("inspect", tmp_path, "--json").stdout)["decoder"]
    assert decoder["with_interval"] is None
    assert decoder["frames_only"]["model"]["tokens"] == 1


def test_inspect_averages_over_the_given_frames():
    short, long = (
        json.loads(succeeds("inspect", "tiny", "--frames", frames, "--json").stdout)
        for frames in (1, 600)
    )
    assert short["num_frames"] == 1
    name = "with_interval"
    assert short["decoder"][name]["model"]["flops"] < long["decoder"][name]["model"]["flops"]


# ---- export ----


@pytest.fixture
def no_tracing(monkeypatch, tiny_bundle):
    """Exports of the tiny checkpoint reuse its bundle's traced topologies (6 s each)."""
    topologies = read_topologies(tiny_bundle, preset_config("tiny"))
    monkeypatch.setattr(bundle_module, "trace", partial(untraced, topologies))


def test_export_prints_what_it_wrote_and_the_largest_error(tiny_checkpoint, no_tracing, tmp_path):
    bundle = tmp_path / "bundle"
    result = succeeds("export", tiny_checkpoint, "-o", bundle)
    assert re.fullmatch(
        rf"wrote {re.escape(str(bundle))}: 8 graphs, 3\.8 MB; largest error against PyTorch "
        r"\d\.\de-0[67] \(layers/0\d\.onnx\), allowed 2e-05\n",
        result.stdout,
    )
    assert re.fullmatch(
        r"target cpu \(onnxruntime [\d.]+ here\), precision fp32\n"
        r"weights as-dtype \(fp32\): the default for target cpu below 100 million .*\n"
        r"export: vision \(0%\)\n(export: .*\n)*",
        result.stderr,
    )
    check_files(bundle, read_manifest(bundle), hash_all=True)


def test_export_json_has_the_parity_of_every_graph(tiny_checkpoint, no_tracing, clip, tmp_path):
    bundle = tmp_path / "bundle"
    result = succeeds("export", tiny_checkpoint, "-o", bundle, "--layers", "0-1", "--json")
    document = json.loads(result.stdout)
    assert document["bundle"] == str(bundle)
    assert document["size_bytes"] == read_manifest(bundle).size_bytes
    assert document["parity"].keys() == {"vision", "layer-00", "layer-01", "head"}
    for parity in document["parity"].values():
        assert parity["max_relative_error"] < parity["allowed"]
    result = invoke("run", bundle, "--source", clip)
    assert result.exit_code == 1
    assert "has 2 of 6 layers" in result.stderr


@pytest.mark.usefixtures("no_tracing")
def test_export_of_a_quantized_bundle_prints_what_quantizing_costs(tiny_checkpoint, tmp_path):
    bundle = tmp_path / "bundle"
    command = ("export", tiny_checkpoint, "-o", bundle, "--weights", "int8", "--layers", "1")
    result = succeeds(*command)
    assert "\nweights int8: chosen with --weights\n" in result.stderr
    wrote, cost = result.stdout.splitlines()
    assert ": 3 graphs, " in wrote
    assert re.fullmatch(
        r"weights int8: against the original weights the largest error is \d\.\de-0[12] "
        r"\((vision|layers/01|head)\.onnx\)",
        cost,
    )
    document = json.loads(succeeds(*command, "--force", "--json").stdout)
    assert document["lowering"]["weight_format"] == "int8"
    assert document["size_bytes"] == read_manifest(bundle).size_bytes
    assert all(0 < parity["cost"] < 0.2 for parity in document["parity"].values())


@pytest.mark.slow  # traces in bf16: 30 s
def test_export_with_build_leaves_engines_for_the_profiles_gpu(tiny_checkpoint, tmp_path):
    result = succeeds(
        *("export", tiny_checkpoint, "-o", tmp_path / "bundle", "--layers", "0-1"),
        *("--profile", "rtx-ampere", "--target", "rtx", "--window", "300", "--build"),
    )
    assert result.stderr.splitlines()[0].endswith(
        "precision bf16, window 300 tokens (228 rows in MoD layers)"
    )
    assert "5 built, 0 up to date" in result.stdout
    (engines,) = read_engine_manifests(tmp_path / "bundle")
    assert (engines.settings.profile, engines.settings.compute_capability) == ("rtx-ampere", "86")
    assert engines.engines.keys() == {"vision", "layer-00", "layer-01", "head", "rebase"}


def test_targets_prints_one_row_per_target():
    header, *rows = succeeds("targets").stdout.split("\n\n")[0].splitlines()
    assert re.split("  +", header) == [
        *("target", "runs on", "dialect", "opset", "fp32", "fp16", "bf16", "installed")
    ]
    assert [row.split()[0] for row in rows] == list(TARGETS)
    cpu, cuda = (re.split("  +", row) for row in rows[:2])
    assert cpu[:-1] == ["cpu", "ONNX Runtime on a CPU", "delta", "20", "yes", "-", "-"]
    assert cpu[-1].startswith("onnxruntime ")
    assert cuda[2:-1] == ["in_place", "24", "yes", "yes", "-"]


def test_targets_prints_the_form_and_the_cost_of_every_weight_format():
    header, *lines = succeeds("targets").stdout.split("\n\n")[1].splitlines()
    assert re.split("  +", header) == [
        *("target", "weights", "part", "op", "bits", "block", "activations"),
        *("bytes fp32", "bytes fp16", "bytes bf16"),
    ]
    cells = [re.split("  +", line) for line in lines]
    assert [
        "cpu",
        "int8",
        "all",
        "MatMulInteger",
        "8",
        "-",
        "u8 per row",
        "1.000",
        "-",
        "-",
    ] in cells
    assert ["cpu", "int4", "layers", "MatMulNBits", "4", "32", "s8 per block", "0.641"] in [
        row[:8] for row in cells
    ]
    int4 = ["rtx", "int4", "layers", "DequantizeLinear", "4", "32", "-", "0.625", "0.562", "0.562"]
    assert int4 in cells
    assert ["tensorrt-delta", "int4"] not in [row[:2] for row in cells]
    assert any(line.startswith("int8 rounds activations to 8 bits too") for line in lines)


def test_targets_json_is_one_document():
    document = json.loads(succeeds("targets", "--json").stdout)
    assert [row["target"] for row in document["targets"]] == list(TARGETS)
    assert {row["target"]: row["precisions"] for row in document["targets"]}["rtx"] == [
        *("fp32", "fp16", "bf16")
    ]
    assert {row["target"] for row in document["weights"]} == TARGETS.keys()
    assert document["weights"][0]["bytes_per_weight"] == {"fp32": 4.0}


# ---- run ----


def test_run_json_is_one_object_per_line_ending_in_the_summary(tiny_bundle, clip):
    result = succeeds(
        *("run", tiny_bundle, "--source", clip, "--max-frames", 12, "--json"),
        *("--query", QUERY, "--query", "What happens?@2.5", "--max-new-tokens", 8),
    )
    assert result.stderr == ""
    events = events_of(result)
    summary = events[-1]
    frames = [event for event in events if event["event"] == "frame"]
    replies = [event for event in events if event["event"] == "reply"]
    assert {event["event"] for event in events} == {"frame", "query", "reply", "summary"}
    assert [event["event"] for event in events].count("summary") == 1
    assert [frame["index"] for frame in frames] == list(range(12))
    assert [frame["time_s"] for frame in frames] == [number / 2 for number in range(12)]
    assert summary["num_frames"] == 12 == sum(summary["decisions"].values())
    assert summary["num_replies"] == len(replies)
    assert summary["num_reply_tokens"] == sum(len(reply["token_ids"]) for reply in replies)
    asked = [(event["query"], event["asked_s"]) for event in events if event["event"] == "query"]
    assert asked == [(QUERY, 0.0), ("What happens?", 2.5)]
    assert summary["warnings"] == []


def test_run_prints_the_conversation_and_the_summary(tiny_bundle, clip):
    result = succeeds(
        *("run", tiny_bundle, "--source", clip, "--max-frames", 4),
        *("--query", QUERY, "--max-new-tokens", 4),
    )
    lines = result.stdout.splitlines()
    assert lines[0] == f"  0:00.0 query     {QUERY}"
    assert lines[1].startswith("  0:00.0 reply     ")
    assert any(line.startswith("frames") and "4 (" in line for line in lines)
    assert not any("frame 1," in line for line in lines)
    assert result.stderr.startswith("backend onnx (onnxruntime ")
    assert re.search(r"window \d+ tokens \(\d+ rows in MoD layers\), .* 120 s of", result.stderr)


def test_run_verbose_shows_every_frame_and_roll(tiny_bundle, clip):
    result = succeeds(
        *("run", tiny_bundle, "--source", clip, "--verbose", "--window", 250),
        *("--max-new-tokens", 8),
    )
    times = r"letterbox [\d.]+ ms, vision [\d.]+ ms, decoder [\d.]+ ms"
    shown = re.findall(rf"frame (\d+), {times}", result.stdout)
    assert shown == [str(number) for number in range(31)]
    assert "tokens evicted in" in result.stdout


def test_run_takes_a_budget_instead_of_a_window(tiny_bundle, clip):
    result = succeeds("run", tiny_bundle, "--source", clip, "--max-frames", 2, "--kv-budget", 1.5)
    assert re.search(r"rows in MoD layers\), 1\.[45] MiB", result.stderr)


def test_run_on_the_reference_gives_the_same_events(tiny_bundle, tiny_checkpoint, clip):
    """No token is near a tie: the best logit leads by 0.021 or more, rounding moves it by 1e-4."""
    arguments = ("run", tiny_bundle, "--source", clip, "--max-frames", 6, "--json")
    ours = events_of(succeeds(*arguments, "--query", QUERY, "--max-new-tokens", 4))
    theirs = events_of(
        succeeds(
            *(*arguments, "--query", QUERY, "--max-new-tokens", 4),
            *("--backend", "torch", "--checkpoint", tiny_checkpoint),
        )
    )
    keys = ("event", "time_s", "index", "decision", "token_ids", "num_tokens")
    assert [[event.get(key) for key in keys] for event in ours] == [
        [event.get(key) for key in keys] for event in theirs
    ]


def test_a_query_after_the_end_is_a_warning(tiny_bundle, clip):
    arguments = ("run", tiny_bundle, "--source", clip, "--max-frames", 2, "--query", "Then?@99")
    warning = "the query 'Then?' at 99 s was not reached"
    assert succeeds(*arguments).stderr.splitlines()[-1] == f"warning: {warning}"
    assert events_of(succeeds(*arguments, "--json"))[-1]["warnings"] == [warning]


def test_a_video_that_ends_early_gives_a_summary_and_a_warning(tiny_bundle, tmp_path):
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for number in range(60):
        writer.write(np.full((64, 64, 3), 4 * number, np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    arguments = ("run", tiny_bundle, "--source", path)
    result = succeeds(*arguments)
    assert re.search(r"warning: .*cut\.avi ended early: read \d+ of 60 frames", result.stderr)
    assert result.stdout.splitlines()[-1].startswith("cache")
    events = events_of(succeeds(*arguments, "--json"))
    assert events[-1]["event"] == "summary"
    assert 1 < events[-1]["num_frames"] < 12
    assert "ended early" in events[-1]["warnings"][0]


def test_run_without_a_video_replies_to_text_turn_by_turn(tiny_bundle):
    arguments = ("run", tiny_bundle, "--query", QUERY, "--query", "And now?@0")
    result = succeeds(*arguments, "--max-new-tokens", 4)
    lines = result.stdout.splitlines()
    assert lines[0] == f"query     {QUERY}"
    assert [line.split()[0] for line in lines if line.startswith(("query ", "reply "))] == [
        *("query", "reply", "query", "reply")
    ]
    assert re.search(r"speed    [\d.]+ tokens/s, first token after [\d.]+/[\d.]+ ms", lines[-2])
    assert result.stderr.startswith("backend onnx (onnxruntime ")
    assert re.search(r"window \d+ tokens of text, \d\.\d MiB", result.stderr)
    events = events_of(succeeds(*arguments, "--max-new-tokens", 4, "--json", "--tokens"))
    assert [event["query"] for event in events if event["event"] == "query"] == [QUERY, "And now?"]
    assert {event["event"] for event in events} == {"query", "text", "reply", "summary"}
    said = "".join(event["text"] for event in events if event["event"] == "text")
    replies = [event["text"] for event in events if event["event"] == "reply"]
    assert "".join(said.split()) == "".join("".join(replies).split())


def test_run_without_a_video_takes_a_window_of_text(tiny_bundle):
    for options, wanted in (
        (("--window", 300), "window 300 tokens of text"),
        (("--kv-budget", 1.5), ", 1.5 MiB"),
    ):
        result = succeeds("run", tiny_bundle, "--query", "a", "--max-new-tokens", 2, *options)
        assert wanted in result.stderr


def test_without_a_video_what_needs_one_is_a_usage_error_that_says_so():
    for options, message in (
        ((), "or --query TEXT for a conversation of text alone"),
        (("--query", "a@12", "--query", "b"), "'a' is at 12 s of video, but there is no video"),
        (("--query", "a", "--max-frames", 3, "--threshold", 1), "--max-frames, --threshold only"),
    ):
        result = invoke("run", "bundle", *options)
        assert result.exit_code == 2
        assert message in " ".join(re.sub("[│\n]", " ", result.stderr).split())


# ---- eval of a text ----


@pytest.fixture
def text(tmp_path):
    """A file of more than one window of 64 tokens, its name with a control character."""
    path = tmp_path / "a\x1b[31m.txt"
    path.write_text("A man walks on the path, and stops. " * 9)
    return path


def test_eval_prints_the_perplexity_of_a_text(tiny_bundle, text):
    result = succeeds("eval", tiny_bundle, "--text", text, "--window-tokens", 64)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "backend", "text", "loss", "perplexity"]
    assert re.search(r": \d+ tokens in \d windows of 64$", lines[2])
    assert re.search(r"loss +\d\.\d{4} nats, mean of \d+ tokens$", lines[3])
    assert all(line.isprintable() for line in lines)
    assert result.stderr.startswith("eval: window 1 of ")


def test_eval_json_of_a_text_is_one_document(tiny_bundle, text):
    result = succeeds("eval", tiny_bundle, "--text", text, "--json")
    document = json.loads(result.stdout)
    assert document["num_windows"] == 1
    assert document["window_tokens"] == 1024
    assert document["num_predicted"] == document["num_tokens"]
    assert document["perplexity"] == pytest.approx(np.exp(document["loss"]))


def test_options_of_a_data_set_are_named_where_a_text_is_evaluated():
    result = invoke(
        "eval", "ck", "--text", "text.txt", "--clips", 3, "--controls", "--split", "test"
    )
    assert result.exit_code == 2
    assert "--split, --clips, --controls only with --data DATA" in result.stderr


# ---- numbers ----


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (107934121984, "107.9 GB"), (2e15, "2000.0 TB")],
)
def test_numbers_are_short(number, text):
    assert si(number, "B") == text
