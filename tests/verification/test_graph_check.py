"""One graph compared with its recording: faults are found, also those that Polygraphy overlooks."""

import re
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import onnx
import pytest

from mod_edge.bundle.manifest import read_manifest
from mod_edge.model.presets import preset_config
from mod_edge.plan.parity import TIED_LOGITS, cut_margin, selection_gap
from mod_edge.plan.signature import bundle_signatures, layer_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.verification.graph_backends import CPU, CUDA, graph_backends, onnx_backend
from mod_edge.verification.graph_check import check_graph, compare_outputs
from mod_edge.verification.recording import AFTER_ROLL
from mod_edge.verification.tolerances import ALLOWED_ERROR
from tests.export import graph_faults

pytestmark = pytest.mark.numeric

CONFIG = preset_config("tiny")
MOD = layer_signature(CONFIG, 1, CPU_FP32)
BACKEND = onnx_backend(CPU_FP32)
TENSORRT_DELTA = Lowering("tensorrt-delta", "fp16")
BUNDLES = (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "fp16"), ("tensorrt-delta", "fp16"))
# Measured on the healthy tiny graphs: 1.9e-6 in fp32, 2.6e-3 in fp16.
HEALTHY_ERROR = {"fp32": 6e-6, "fp16": 5e-3}


# ---- healthy graphs ----


@pytest.mark.parametrize(("target", "precision"), BUNDLES)
def test_every_graph_of_a_healthy_bundle_agrees(any_bundle, recording_of, target, precision):
    bundle = any_bundle(target, precision)
    lowering = read_manifest(bundle).lowering
    (backend,), _ = graph_backends(lowering)
    for signature in bundle_signatures(CONFIG, lowering):
        result = check_graph(bundle / signature.file, recording_of(signature, lowering), backend)
        assert result.status == "ok", (result.graph, result.reason)
        assert result.worst.largest <= HEALTHY_ERROR[precision] < ALLOWED_ERROR[precision] / 1.9
        assert all(error.cosine > 0.9999 for error in result.outputs)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(("provider", "shares"), [(CPU, "1"), (CUDA, "0")])
def test_only_a_session_on_the_cpu_shares_the_process_s_arena(any_bundle, provider, shares):
    """On a GPU, MoD layers with shared arenas ended the process."""
    bundle = any_bundle("cuda", "fp32")
    lowering = read_manifest(bundle).lowering
    signature = layer_signature(CONFIG, 1, lowering)
    runner = onnx_backend(lowering, provider).runner(bundle / signature.file, signature)
    with ExitStack() as temporary:  # without its provider, ONNX Runtime opens it on the CPU
        options = runner._session(temporary).get_session_options()
    assert options.get_session_config_entry("session.use_env_allocators") == shares


def test_every_kind_of_step_is_recorded(recording_of):
    kinds = [step.kind for step in recording_of(MOD, CPU_FP32).steps]
    plain = {kind.removesuffix(AFTER_ROLL) for kind in kinds}
    assert {"first", "prefill", "decode", "one frame", "many frames"} <= plain
    assert len(kinds) == len(set(kinds))
    assert any(kind.endswith(AFTER_ROLL) for kind in kinds)


@pytest.mark.parametrize("lowering", [CPU_FP32, TENSORRT_DELTA], ids=lambda each: each.target)
def test_inputs_are_those_of_a_stream_that_has_rolled(recording_of, recorded_stream, lowering):
    _, _, trace = recorded_stream
    signature = layer_signature(CONFIG, 1, lowering)
    steps = {step.kind: step.inputs for step in recording_of(signature, lowering).steps}
    assert steps["first"]["past_length"] == 0
    rolled = steps["many frames" + AFTER_ROLL]
    length, key = int(rolled["past_length"][0]), rolled["past_key"]
    if lowering is CPU_FP32:  # a step binds the rows in use
        assert 0 < length == len(key) <= trace.capacity.mod
    else:
        assert 0 < length < len(key) <= trace.capacity.mod + 3
        assert np.abs(key[length:]).max() > 0.1, "stale rows"


# ---- faults ----


@pytest.fixture
def mod_recording(recording_of):
    """The recorded steps of the first MoD layer."""
    return recording_of(MOD, CPU_FP32)


@pytest.fixture
def faulty(tiny_bundle, tmp_path):
    """`faulty(fault)`: layer 1 with a fault of `graph_faults`, or with its weights changed."""

    def make(fault=None, change=None):
        path = graph_faults.copy_graph(tiny_bundle / MOD.file, tmp_path, fault)
        if change is not None:
            weights = np.memmap(path.with_suffix(".data"), np.float32, "r+")
            model = onnx.load(str(path), load_external_data=False)
            external = [tensor for tensor in model.graph.initializer if tensor.external_data]
            change({tensor.name: view_of(weights, tensor) for tensor in external})
            weights.flush()
        return path

    return make


def view_of(weights, tensor):
    entries = {entry.key: entry.value for entry in tensor.external_data}
    first = int(entries["offset"]) // 4
    return weights[first : first + int(entries["length"]) // 4].reshape(tuple(tensor.dims))


def a_weight_block(weights):
    weights["mlp.down_proj.weight"][:32, 0] *= 1.01


def nan_weights(weights):
    weights["self_attn.v_proj.weight"][:] = np.nan


def another_bias(weights):
    weights["router.bias"][:] += 1


def renamed_output(cut):
    (node,) = [node for node in cut.graph.node if "new_value" in node.output]
    node.output[list(node.output).index("new_value")] = "value"
    for consumer in cut.consumers("new_value"):
        cut.replace_input(consumer, "new_value", "value")
    for value in cut.graph.output:
        if value.name == "new_value":
            value.name = "value"


def missing_output(cut):
    (kept,) = [value for value in cut.graph.output if value.name == "kept"]
    cut.graph.output.remove(kept)


@pytest.mark.parametrize(
    ("fault", "change", "says"),
    [
        (None, a_weight_block, r"first: first bad row new_hidden\[0, 0\]"),
        (None, another_bias, r"first bad row new_hidden\[0, 30\]"),
        (None, nan_weights, "first: .* values of new_hidden are not finite"),
        (graph_faults.swapped_gate_and_up, None, "first: first bad row new_hidden"),
        (graph_faults.hidden_ranks, None, "first bad row new_hidden"),
        (graph_faults.ranks_for_positions, None, "kept has . other tokens"),
        (graph_faults.smallest_selected, None, "kept has 2 other tokens .* with a gap of"),
        (graph_faults.unsorted_selection, None, "kept has 0 other tokens .* with a gap of inf"),
        (graph_faults.past_of_zeros, None, "first: first bad row new_hidden"),
        (renamed_output, None, r"its outputs are .*'value'.*, wanted .*'new_value'"),
        (missing_output, None, r"its outputs are \[\], wanted .*'kept'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_is_found_and_described(faulty, mod_recording, fault, change, says):
    result = check_graph(faulty(fault, change), mod_recording, BACKEND)
    assert result.status == "failed"
    assert re.search(says, result.reason), result.reason


def test_the_same_graph_without_a_fault_is_ok(faulty, mod_recording):
    result = check_graph(faulty(), mod_recording, BACKEND)
    assert (result.status, result.reason) == ("ok", "")


def test_a_file_that_does_not_load_is_a_failure(faulty, mod_recording):
    path = faulty()
    path.write_bytes(path.read_bytes()[:500])
    result = check_graph(path, mod_recording, BACKEND)
    assert result.status == "failed"
    assert result.reason.startswith("it does not load: ")


# ---- selections ----


def with_logits(recording, change):
    """The recording with its steps' router logits changed: `change(logits, kept)` in place."""
    steps = []
    for step, right in zip(recording.steps, recording.outputs({}), strict=True):
        logits = step.router_logits.copy()
        change(logits, right["kept"])
        steps.append(replace(step, router_logits=logits))
    return replace(recording, steps=tuple(steps))


def other_tokens(recording):
    """Another selection for every step with frames: the last kept token becomes the next best."""
    selections = {}
    for number, (step, right) in enumerate(
        zip(recording.steps, recording.outputs({}), strict=True)
    ):
        if len(right["kept"]):
            best = np.argsort(-step.router_logits, axis=1)[:, : CONFIG.num_kept + 1]
            best[:, -2] = best[:, -1]
            selections[number] = np.sort(best[:, :-1], axis=1)
    return selections


def all_equal(logits, _kept):
    logits[:] = 1


def test_tokens_with_equal_router_logits_are_a_tie_and_followed(mod_recording):
    recording = with_logits(mod_recording, all_equal)
    selections = other_tokens(mod_recording)
    result = compare_outputs(recording, "other", lambda: recording.outputs(selections))
    assert result.status == "ok"
    assert result.num_ties >= len(selections) > 2
    assert result.worst.largest == 0, "the reference followed"


def test_numbers_are_still_compared_after_a_tie(mod_recording):
    recording = with_logits(mod_recording, all_equal)
    ours = recording.outputs(other_tokens(mod_recording))
    ours[-2]["new_hidden"][0, -1] += 1
    result = compare_outputs(recording, "other", lambda: ours)
    assert result.status == "failed"
    assert "first bad row new_hidden[0, " in result.reason


@pytest.mark.parametrize("gap", [0.5 * TIED_LOGITS, 2 * TIED_LOGITS])
def test_a_tie_ends_at_the_stated_gap(mod_recording, gap):
    def almost_equal(logits, kept):
        logits[:] = 1 - gap
        np.put_along_axis(logits, kept, values=1, axis=1)

    recording = with_logits(mod_recording, almost_equal)
    ours = mod_recording.outputs(other_tokens(mod_recording))
    result = compare_outputs(recording, "other", lambda: ours)
    assert result.status == ("ok" if gap < TIED_LOGITS else "failed")
    assert result.selections[0].gap == pytest.approx(gap, rel=0.1)


def test_other_tokens_than_the_routers_fail_with_the_gap_and_the_tokens(mod_recording):
    selections = other_tokens(mod_recording)
    result = compare_outputs(mod_recording, "other", lambda: mod_recording.outputs(selections))
    assert result.status == "failed"
    assert re.search(r"kept has 1 other tokens than the reference, with a gap of", result.reason)
    shown = result.selections[0]
    assert shown.ours == selections[0].tolist() != shown.theirs
    assert shown.gap >= shown.margin > TIED_LOGITS, "a gap is at least the margin at the cut"


def test_without_a_router_no_other_selection_is_a_tie(mod_recording):
    blind = tuple(replace(step, router_logits=None) for step in mod_recording.steps)
    recording = replace(mod_recording, steps=blind)
    ours = recording.outputs({})
    assert compare_outputs(recording, "other", lambda: ours).status == "ok"
    ours[0]["kept"] = ours[0]["kept"] + 1
    assert compare_outputs(recording, "other", lambda: ours).status == "failed"


def test_positions_outside_a_frame_fail_without_a_crash(mod_recording):
    ours = mod_recording.outputs({})
    ours[0]["kept"] = ours[0]["kept"] + 1000
    assert "with a gap of inf" in compare_outputs(mod_recording, "other", lambda: ours).reason


def test_the_margin_at_the_cut_is_the_smallest_over_frames():
    logits = np.array([[5, 1, 3, 2.75], [8, 7, 1, 0]], np.float32)
    assert cut_margin(logits, 2) == 0.25 / 8, "a share of the largest logit"
    assert cut_margin(logits, 4) == cut_margin(logits[:0], 2) == float("inf")


def test_a_router_of_zeros_has_no_gap_and_no_margin():
    zeros = np.zeros((2, 4), np.float32)
    assert selection_gap(zeros, np.array([[0, 1], [2, 3]])) == cut_margin(zeros, 2) == 0


# ---- what Polygraphy lets pass ----


def without_value(outputs):
    del outputs["new_value"]


def value_renamed(outputs):
    outputs["value"] = outputs.pop("new_value")


def empty(outputs):
    outputs["new_value"] = outputs["new_value"][:0]


def of_int32(outputs):
    outputs["kept"] = outputs["kept"].astype(np.int32)


def of_float64(outputs):
    outputs["new_key"] = outputs["new_key"].astype(np.float64)


def infinite(outputs):
    outputs["new_key"][0, 0, 0] = np.inf


def another_shape(outputs):
    outputs["new_hidden"] = outputs["new_hidden"][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_value, r"outputs are \['kept', 'new_hidden', 'new_key'\]"),
        (value_renamed, "outputs are .*'value'"),
        (empty, r"new_value is float32 \(0, 2, 16\), wanted float32 \(32, 2, 16\)"),
        (of_int32, "kept is int32"),
        (of_float64, "new_key is float64"),
        (infinite, "1 of 1024 values of new_key are not finite"),
        (another_shape, r"new_hidden is float32 \(40, 96\), wanted float32 \(1, 40, 96\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_names_dtypes_and_shapes_fail_before_numbers_are_compared(
    mod_recording, change, says
):
    ours = mod_recording.outputs({})
    change(ours[0])
    result = compare_outputs(mod_recording, "other", lambda: ours)
    assert result.status == "failed"
    assert re.search(f"first: .*{says}", result.reason), result.reason


def test_one_wrong_value_fails_although_mean_and_quantile_are_small(mod_recording):
    ours = mod_recording.outputs({})
    ours[0]["new_hidden"][0, 17, 5] += 1
    result = compare_outputs(mod_recording, "other", lambda: ours)
    assert result.reason == "first: first bad row new_hidden[0, 17]"
    worst = result.worst
    assert worst.mean < ALLOWED_ERROR["fp32"] < worst.largest
    assert worst.first_bad_row == (0, 17)
    assert worst.cosine < 0.99999


def test_a_small_row_is_not_compared_relative_to_a_large_one(mod_recording):
    huge = mod_recording.outputs({})
    for outputs in huge:
        outputs["new_hidden"][0, 0] *= 1e4
    recording = replace(mod_recording, outputs=lambda _selections: huge)
    ours = [{name: array.copy() for name, array in outputs.items()} for outputs in huge]
    ours[0]["new_hidden"][0, 17] *= 1.01
    assert compare_outputs(recording, "other", lambda: ours).worst.first_bad_row == (0, 17)
