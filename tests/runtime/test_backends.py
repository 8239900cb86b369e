"""Which backend is chosen and why, and when it must not be replaced silently."""

import shutil

import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.engine_manifest import ENGINES_FOLDER
from mod_edge.errors import BackendError, ConfigError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.runtime import backends
from mod_edge.runtime.backends import BackendChoice, load_model
from mod_edge.runtime.loaded_model import StreamLimits
from tests.conftest import CAPACITY
from tests.runtime.stand_in_model import stand_in_for

LIMITS = StreamLimits(CAPACITY, max_step_tokens=64, frames_per_step=3)


def choose(bundle, **choice):
    model, reason = load_model(open_bundle(bundle), LIMITS, BackendChoice(**choice))
    model.close()
    return model.name, reason


@pytest.fixture
def machine(stand_in_bundle, monkeypatch):
    """An RTX bundle on a machine with a stand-in GPU and TensorRT-RTX, without engines."""
    machine = stand_in_for(stand_in_bundle("rtx", "fp16"))
    engines = machine.bundle.folder / ENGINES_FOLDER
    shutil.rmtree(engines, ignore_errors=True)  # other tests build some
    monkeypatch.setattr(backends, "CudaDriver", lambda: CudaDriver(machine.cudart))
    monkeypatch.setattr("mod_edge.native.trt.load", lambda _compiler: machine.tensorrt)
    monkeypatch.setattr(
        "mod_edge.runtime.device.trt_model.load", lambda _compiler: machine.tensorrt
    )
    return machine


def test_a_cpu_bundle_runs_on_onnxruntime(tiny_bundle):
    name, reason = choose(tiny_bundle)
    assert name.startswith("onnx (onnxruntime")
    assert reason == "for target cpu"
    assert choose(tiny_bundle, backend="onnx", device="cpu")[1] == "as requested"
    assert choose(tiny_bundle, backend="onnx")[1] == "as requested"


def test_a_bundle_without_engines_runs_on_the_cpu_and_the_reason_has_the_build_command(bundle_for):
    name, reason = choose(bundle_for("rtx", "fp16"))
    assert "CPU" in name
    assert "no engines are built (mod-edge build" in reason


def test_engines_without_a_gpu_fall_back_to_the_cpu_with_the_reason(machine, monkeypatch):
    machine.build()

    def no_driver():
        raise BackendError("no NVIDIA driver runs here")

    monkeypatch.setattr(backends, "CudaDriver", no_driver)
    name, reason = choose(machine.bundle.folder)
    assert "CPU" in name
    assert reason == "engines are built, but no NVIDIA driver runs here"


def test_engines_that_fit_are_used(machine):
    machine.build()
    name, reason = choose(machine.bundle.folder)
    assert name.startswith("tensorrt (TensorRT-RTX")
    assert reason == "its engines fit here"
    assert machine.cudart.num_live == 0


def test_engines_that_do_not_fit_are_an_error_never_another_backend(machine):
    machine.build(version="1.6.0.1")
    with pytest.raises(BackendError, match=r"1\.6\.0\.1.*mod-edge build"):
        choose(machine.bundle.folder)
    assert machine.cudart.num_live == 0


def test_tensorrt_for_a_cpu_bundle_names_the_targets_also_where_there_is_no_gpu(tiny_bundle):
    with pytest.raises(BackendError, match=r"for target cpu, which has no engines.*--target"):
        choose(tiny_bundle, backend="tensorrt")


def test_a_bf16_bundle_that_cannot_run_here_reports_both_reasons(bundle_for):
    with pytest.raises(BackendError, match=r"no engines are built.*on the CPU: .* is in bf16"):
        choose(bundle_for("rtx", "bf16"))


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"backend": "trt"}, "wanted one of auto, tensorrt, onnx, torch"),
        ({"device": "gpu"}, "wanted one of auto, cpu, cuda"),
        ({"backend": "torch"}, "give --backend torch and --checkpoint CHECKPOINT together"),
        ({"backend": "tensorrt", "device": "cuda"}, "omit --device"),
    ],
)
def test_contradicting_choices_are_errors(choice, says):
    with pytest.raises(ConfigError, match=says):
        BackendChoice(**choice)
