"""Quantized graphs in the real TensorRT-RTX: they compile, without a warning, and stay small.

An engine whose weights the compiler dequantized ahead of time would be right but as large as the
unquantized one, and as slow.
"""

from dataclasses import replace

import pytest
import torch

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.engine_manifest import EngineSettings
from mod_edge.bundle.shape_ranges import ShapeRange, StepLimits, optimization_profiles
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.export.compiler import compile_graph
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import preset_config, write_random_checkpoint
from mod_edge.native import trt
from mod_edge.plan.graph_kind import HEAD
from mod_edge.plan.signature import GraphSignature, TensorSpec, bundle_signatures
from mod_edge.plan.targets import DTYPES, TARGETS, Lowering
from mod_edge.plan.weight_forms import DEQUANTIZED_INT4, DEQUANTIZED_INT8
from tests.conftest import CAPACITY
from tests.export.one_product import quantized

pytest.importorskip("tensorrt_rtx")

LIMITS = StepLimits(max_step_tokens=128, opt_frames=2, max_frames=4, capacity=CAPACITY)
CAPABILITIES = ("86", "89", "120")
NUM_IN, NUM_OUT = 1024, 2048  # not square, so that a swapped axis shows
NUM_WEIGHTS = NUM_IN * NUM_OUT
# Whatever else is in the engine of one product: 19 to 23 kB measured.
KERNEL_BYTES = 100_000


@pytest.fixture(scope="module")
def rtx():
    return trt.load("tensorrt_rtx")


@pytest.fixture(scope="module")
def settings(rtx):
    return EngineSettings("rtx", "tensorrt_rtx", rtx.version, "89", "fp16", "test", LIMITS, 64, 3)


@pytest.fixture(scope="module")
def product_engine(rtx, settings, tmp_path_factory):
    """`product_engine(form, precision, ...)`: the compiled product of a weight in that form."""
    folder = tmp_path_factory.mktemp("product")
    weight = torch.randn(NUM_OUT, NUM_IN, generator=torch.Generator().manual_seed(0))
    profiles = {"any": {"hidden": ShapeRange((1, 1, NUM_IN), (1, 4, NUM_IN), (1, 8, NUM_IN))}}

    def make(form, precision, *, capability="89", opset=24):
        dtype = DTYPES[precision]
        model = quantized(form, {"weight": weight.to(getattr(torch, dtype))}, opset=opset)
        path = folder / "head.onnx"
        path.write_bytes(model.SerializeToString())
        signature = GraphSignature(
            HEAD,
            (TensorSpec("hidden", dtype, (1, "T", NUM_IN)),),
            (TensorSpec("product", dtype, (1, "T", NUM_OUT)),),
        )
        chosen = replace(settings, compute_capability=capability)
        return compile_graph(rtx, path, signature, profiles, chosen)

    return make


def size_bytes(compiled):
    return memoryview(compiled.plan).nbytes


# Engines of a form had one size for all three GPUs and both precisions.
PRODUCTS = [
    pytest.param(
        *(precision, capability),
        marks=() if (precision, capability) == ("fp16", "89") else pytest.mark.slow,
    )
    for precision in ("fp16", "bf16")
    for capability in CAPABILITIES
]


@pytest.mark.parametrize(("precision", "capability"), PRODUCTS)
@pytest.mark.parametrize("form", [DEQUANTIZED_INT8, DEQUANTIZED_INT4], ids=lambda form: form.bits)
def test_an_engine_holds_codes_instead_of_dequantized_weights(
    product_engine, form, precision, capability
):
    compiled = product_engine(form, precision, capability=capability)
    assert compiled.warnings == ()
    codes_bytes = form.bytes_per_weight(2) * NUM_WEIGHTS
    assert codes_bytes < size_bytes(compiled) < codes_bytes + KERNEL_BYTES


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_opset_20_has_int8_weights_too(product_engine, precision):
    compiled = product_engine(DEQUANTIZED_INT8, precision, opset=20)
    assert compiled.warnings == ()
    assert size_bytes(compiled) < NUM_WEIGHTS + KERNEL_BYTES


def test_an_engine_of_unquantized_weights_is_that_much_larger(product_engine):
    assert size_bytes(product_engine(None, "fp16")) > 2 * NUM_WEIGHTS


# ---- layers ----


def lowering(target, precision, weights):
    capacity = CAPACITY if TARGETS[target].dialect == "in_place" else None
    return Lowering(target, precision, capacity, weights)


@pytest.fixture(scope="module")
def compile_bundle(rtx, settings):
    """`compile_bundle(folder, capability)`: compiled graphs of an open bundle, by name."""

    def make(bundle, capability):
        chosen = replace(settings, compute_capability=capability)
        return {
            signature.name: compile_graph(
                rtx,
                bundle.folder / signature.file,
                signature,
                optimization_profiles(signature, bundle.config, LIMITS),
                chosen,
            )
            for signature in bundle_signatures(bundle.config, bundle.lowering, layers=[0, 1])
        }

    return make


SLOW = pytest.mark.slow  # another trace and export: 30 s each
COMBINATIONS = [
    pytest.param(
        *(target, precision, each.name),
        marks=() if (target, precision, each.name) == ("rtx", "fp16", "int4") else SLOW,
    )
    for target in ("rtx", "tensorrt-delta")
    for precision in TARGETS[target].precisions
    for each in TARGETS[target].weight_formats[1:]
]


@pytest.mark.parametrize(("target", "precision", "weights"), COMBINATIONS)
def test_every_kind_of_quantized_graph_compiles(
    bundle_for, compile_bundle, target, precision, weights
):
    bundle = open_bundle(bundle_for(target, precision, weights))
    compiled = compile_bundle(bundle, "89")
    assert compiled.keys() == {"vision", "layer-00", "layer-01", "head", "rebase"}
    assert {name: each.warnings for name, each in compiled.items() if each.warnings} == {}


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("capability", [each for each in CAPABILITIES if each != "89"])
@pytest.mark.parametrize("weights", ["int8-weight-only", "int4"])
def test_every_kind_of_quantized_graph_compiles_for_other_gpus(
    bundle_for, compile_bundle, weights, capability
):
    compiled = compile_bundle(open_bundle(bundle_for("rtx", "fp16", weights)), capability)
    assert {name: each.warnings for name, each in compiled.items() if each.warnings} == {}


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory):
    """Layers of the `1b` preset between a tiny head and a tiny vision tower."""
    config, tiny = preset_config("1b"), preset_config("tiny")
    text = replace(config.text_config, num_hidden_layers=2, vocab_size=512)
    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    folder.mkdir()
    write_random_checkpoint(replace(tiny, text_config=text, dtype=config.dtype), folder, seed=0)
    return Checkpoint(folder)


@pytest.mark.slow  # three exports of 122 million weights: 3 min
@pytest.mark.parametrize(("weights", "ratio"), [("int8-weight-only", 0.55), ("int4", 0.35)])
def test_engines_of_large_layers_shrink_with_their_weights(
    large_checkpoint, compile_bundle, tmp_path, weights, ratio
):
    sizes = {}
    for name in ("as-dtype", weights):
        chosen = lowering("rtx", "fp16", name)
        export_bundle(large_checkpoint, tmp_path / name, lowering=chosen)
        compiled = compile_bundle(open_bundle(tmp_path / name), "89")
        sizes[name] = {graph: size_bytes(each) for graph, each in compiled.items()}
        assert {graph for graph, each in compiled.items() if each.warnings} == set()
    for layer in ("layer-00", "layer-01"):
        assert sizes[weights][layer] < ratio * sizes["as-dtype"][layer], layer
