"""ONNX Runtime's CUDA provider on a real GPU, compared with its CPU provider and with PyTorch."""

import numpy as np
import onnxruntime
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.device.cuda_model import load_cuda_model
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.verification.verify import verify_bundle
from tests.conftest import CAPACITY
from tests.gpu.test_trt_model import ATOL_LOGITS, run_script, script
from tests.runtime.stand_in_model import FRAMES_PER_STEP, MAX_STEP_TOKENS

LIMITS = StreamLimits(CAPACITY, MAX_STEP_TOKENS, FRAMES_PER_STEP)
every_form = pytest.mark.parametrize(
    "form", [("fp32", "as-dtype"), ("fp16", "as-dtype"), ("fp16", "int4")], ids="-".join
)

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no CUDAExecutionProvider; install onnxruntime-gpu",
)


@pytest.fixture
def bundle_of(bundle_for):
    return lambda form: open_bundle(bundle_for("cuda", *form))


@every_form
def test_logits_equal_those_on_the_cpu(bundle_of, form):
    bundle = bundle_of(form)
    with load_cuda_model(bundle, LIMITS) as model, model.open_stream() as stream:
        ours = run_script(stream, model.config)
    theirs = run_script(OnnxModel(bundle, LIMITS).open_stream(), bundle.config)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL_LOGITS[form[0]])


def test_two_streams_by_turns_give_what_each_gives_alone(bundle_of):
    bundle = bundle_of(("fp32", "as-dtype"))
    with load_cuda_model(bundle, LIMITS) as model:
        with model.open_stream() as stream:
            alone = run_script(stream, model.config)
        with model.open_stream() as one, model.open_stream() as other:
            scripts = [script(each, model.config, 8) for each in (one, other)]
            steps = list(zip(*scripts, strict=True))
    for together in map(np.concatenate, zip(*steps, strict=True)):
        np.testing.assert_allclose(together, alone, rtol=0, atol=ATOL_LOGITS["fp32"])


@every_form
def test_every_graph_and_the_stream_agree_with_the_reference(bundle_of, tiny_checkpoint, form):
    report = verify_bundle(bundle_of(form).folder, tiny_checkpoint)
    assert report.is_ok, [result.reason for result in (*report.graphs, *report.streams)]
    assert any("CUDA" in stream.backend for stream in report.streams)
