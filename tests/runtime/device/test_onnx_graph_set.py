"""ONNX Runtime's graphs on a device, with the CPU provider and memory in place of CUDA's.

Sessions run when the stand-in's stream reaches them, with the bindings of the time of the call.
"""

import numpy as np
import onnxruntime
import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.errors import BackendError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.runtime.device import onnx_graph_set
from mod_edge.runtime.device.cuda_model import load_cuda_model
from mod_edge.runtime.device.onnx_graph_set import OnnxGraphSet, ops_elsewhere
from mod_edge.runtime.loaded_model import StreamLimits
from tests.conftest import CAPACITY
from tests.native.stand_in_driver import STREAM, StandInCudart
from tests.runtime.device.test_trt_stream import run_stream
from tests.runtime.streams import onnx_stream, outcome

LIMITS = StreamLimits(CAPACITY, max_step_tokens=64, frames_per_step=3)
CPU = "CPUExecutionProvider"
# The same graphs on the same values, but at other addresses, where kernels may round differently:
# measured 0, logits up to 30. A sink that is not rebased differs by at least 9.9.
ATOL_LOGITS = 1e-3


class DeferredSession:
    """A session that runs in the stand-in's stream."""

    def __init__(self, session, cudart):
        self._session, self._cudart = session, cudart

    def io_binding(self):
        return RecordedBinding()

    def run_with_iobinding(self, binding, options):
        calls = dict(binding.calls)
        for (_, name), (address, size_bytes) in binding.places.items():
            self._cudart.require_device(address, size_bytes, name)

        def work():
            real = self._session.io_binding()
            for (method, name), arguments in calls.items():
                getattr(real, method)(name, *arguments)
            self._session.run_with_iobinding(real, options)

        self._cudart.submit(work)


class RecordedBinding:
    """Records bindings, to bind them when the session runs; "cuda" is host memory here."""

    def __init__(self):
        self.calls, self.places = {}, {}

    def bind_input(self, name, *arguments):
        self._bind("bind_input", name, *arguments)

    def bind_output(self, name, *arguments):
        self._bind("bind_output", name, *arguments)

    def _bind(self, method, name, device, device_id, dtype, shape, address):
        assert (device, device_id) == ("cuda", 0)
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.calls[method, name] = ("cpu", 0, dtype, shape, address)
        self.places[method, name] = (address, size_bytes)


@pytest.fixture
def cudart(monkeypatch):
    """The stand-in driver, with the CPU provider in place of CUDA's."""
    cudart = StandInCudart()
    opened = onnx_graph_set._open

    def open_on_cpu(path, provider, options):
        assert provider == "CUDAExecutionProvider"
        assert options["user_compute_stream"] == str(STREAM)
        return DeferredSession(opened(path, CPU, {}), cudart)

    monkeypatch.setattr(onnx_graph_set, "_open", open_on_cpu)
    return cudart


def loaded(bundle, cudart):
    return load_cuda_model(open_bundle(bundle), LIMITS, driver=CudaDriver(cudart))


def test_the_stream_equals_onnxruntimes_on_the_cpu(bundle_for, cudart, clip):
    bundle = bundle_for("cuda", "fp32")
    with loaded(bundle, cudart) as model:
        assert "CUDA, Stand-in GPU, fp32" in model.name
        ours = run_stream(bundle, model.open_stream(), clip, max_frames=60)
    assert cudart.num_live == 0
    assert not ours.warnings
    reference = onnx_stream(bundle, CAPACITY, max_step_tokens=64, frames_per_step=3)
    theirs = run_stream(bundle, reference, clip, max_frames=60)
    # No token is near a tie: the most likely leads the next by at least 0.036.
    assert outcome(ours.events) == outcome(theirs.events)
    assert len(outcome(ours.events)[2]) >= 3  # rolls
    assert ours.recorder.selections == theirs.recorder.selections
    all_logits = (ours.recorder.all_logits, theirs.recorder.all_logits)
    for our, their in zip(*all_logits, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=ATOL_LOGITS)


def test_a_missing_provider_is_an_error_with_what_to_do(bundle_for):
    bundle = open_bundle(bundle_for("cuda", "fp32"))
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(
        BackendError, match=r"has .*CPUExecutionProvider, wanted CUDAExec.*--device cpu"
    ):
        OnnxGraphSet(0, bundle)


def test_ops_on_another_provider_are_found(bundle_for):
    session = onnx_graph_set._open(bundle_for("cuda", "fp32") / "layers/01.onnx", CPU, {})
    assert ops_elsewhere(session, CPU) == []
    strays = ops_elsewhere(session, "CUDAExecutionProvider")
    assert {"MatMul", "TensorScatter", "Attention", "TopK", "ScatterND"} <= set(strays)
    assert "Shape" not in strays


def test_its_sessions_have_arenas_of_their_own(bundle_for):
    session = onnx_graph_set._open(bundle_for("cuda", "fp32") / "layers/01.onnx", CPU, {})
    options = session.get_session_options()
    assert options.get_session_config_entry("session.use_env_allocators") == "0"


def test_a_cpu_bundle_is_an_error_with_the_target_to_export_for(tiny_bundle, cudart):
    with pytest.raises(BackendError, match=r"is for target cpu in fp32.*--target cuda"):
        loaded(tiny_bundle, cudart)
    assert cudart.num_live == 0
