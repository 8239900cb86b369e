"""Vision graphs of towers that are not the shipped one, on ONNX Runtime and in the compiler."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from mod_edge.bundle.engine_manifest import EngineSettings
from mod_edge.bundle.shape_ranges import StepLimits, optimization_profiles
from mod_edge.config import VisionConfig
from mod_edge.export.check import check_numbers, relative_errors
from mod_edge.export.compiler import compile_graph
from mod_edge.export.lower import lower_file
from mod_edge.export.step_io import reference_module
from mod_edge.export.trace import trace, write_graph
from mod_edge.native import trt
from mod_edge.native.onnx_session import session_options
from mod_edge.plan.signature import vision_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from tests.conftest import CAPACITY
from tests.export.test_tensorrt_delta import faults_of
from tests.model.test_reference import hugging_face_siglip

pytestmark = pytest.mark.numeric

# Measured 1.4e-6; another of the three activations gives at least 1.1e-4.
RTOL_SIGLIP = 5e-6
RTOL_WIDENED = 5e-6  # measured 1.1e-6; a factor of attention in bfloat16 gives 3.1e-4

LIMITS = StepLimits(max_step_tokens=128, opt_frames=2, max_frames=4, capacity=CAPACITY)
# Two pixels are cut off, 16 patches, 3 heads of 14.
EXACT = VisionConfig(42, 50, 1, 3, image_size=30, patch_size=7, hidden_act="gelu")
QUICK = replace(
    EXACT,
    hidden_act="quick_gelu",
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)


@pytest.fixture
def exported(make_config, make_model, tmp_path):
    """`exported(vision, lowering)`: the reference model, the graph's signature and its path."""

    def export(vision, lowering):
        config = replace(make_config(), vision_config=vision)
        model, signature = make_model(config), vision_signature(config, lowering)
        weights = (
            (name, parameter)
            for name, parameter in model.named_parameters()
            if name.startswith(("vision_model.", "connector."))
        )
        path = tmp_path / "vision.onnx"
        write_graph(trace(config, signature, lowering), weights, path)
        lower_file(path, lowering)
        return model, signature, path

    return export


@pytest.mark.parametrize("vision", [EXACT, QUICK], ids=["exact", "quick, normalised by channel"])
def test_the_graph_computes_what_hugging_faces_siglip_does(exported, vision):
    model, _, path = exported(vision, CPU_FP32)
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3), dtype=np.uint8)
    mean, std = (np.float32(each) for each in (vision.image_mean, vision.image_std))
    pixel_values = torch.from_numpy((frames / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    output = hugging_face_siglip(model)(pixel_values)
    grid = output.last_hidden_state.transpose(1, 2).unflatten(2, (4, 4))
    cells = adaptive_avg_pool2d(grid, (3, 3)).flatten(2).transpose(1, 2)
    theirs = model.connector(torch.cat([output.pooler_output[:, None], cells], dim=1)).numpy()
    session = onnxruntime.InferenceSession(str(path), session_options())
    (ours,) = session.run(None, {"frames": frames})
    assert relative_errors(ours, theirs, by_row=False).max() <= RTOL_SIGLIP


def test_a_bfloat16_graph_does_not_round_the_factor_of_attention(make_config, make_model, tmp_path):
    lowering = Lowering("rtx", "bf16", CAPACITY)
    config = replace(make_config(), vision_config=EXACT)  # 14^-0.5, unlike 16^-0.5, is rounded
    signature = vision_signature(config, lowering)
    weights = [
        (name, 4 * parameter if "k_proj.weight" in name else parameter)  # attention that matters
        for name, parameter in make_model(config).named_parameters()
        if name.startswith(("vision_model.", "connector."))
    ]
    topology = trace(config, signature, lowering)
    write_graph(topology, weights, tmp_path / "vision.onnx")

    def make_reference():
        return reference_module(config, signature.kind, weights, topology.weight_dtypes)

    error = check_numbers(tmp_path / "vision.onnx", config, signature, lowering, make_reference)
    assert error <= RTOL_WIDENED


def test_the_graph_compiles_and_tensorrt_10_3_supports_its_ops(exported):
    model, signature, path = exported(QUICK, Lowering("tensorrt-delta", "fp16"))
    graph = onnx.load(str(path), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
    assert faults_of(inferred) == []
    pytest.importorskip("tensorrt_rtx")
    rtx = trt.load("tensorrt_rtx")
    settings = EngineSettings(
        "rtx", "tensorrt_rtx", rtx.version, "89", "fp16", "test", LIMITS, 64, 3
    )
    profiles = optimization_profiles(signature, model.config, LIMITS)
    assert compile_graph(rtx, path, signature, profiles, settings).warnings == ()
