"""The doctor's findings about TensorRT and the GPU, on machines with and without them."""

import json
import sys
from types import SimpleNamespace

import pytest

from mod_edge.doctor import diagnosis as doctor
from mod_edge.doctor import facts
from mod_edge.doctor.diagnosis import check_engines
from mod_edge.doctor.facts import look_at_compilers, look_at_gpu
from mod_edge.errors import BackendError
from mod_edge.native import trt
from mod_edge.native.gpu import Gpu

ORIN = Gpu("Orin", "87", 8 * 2**30, "12.6")
FAULT = "no NVIDIA GPU can be used here"


@pytest.fixture
def gpu_is(monkeypatch):
    """`gpu_is(gpu)`: the doctor finds this GPU, or none."""

    def put(gpu=None):
        def find():
            if gpu is None:
                raise BackendError(FAULT)
            return gpu

        monkeypatch.setattr(facts, "find_gpu", find)

    return put


@pytest.fixture
def fresh_loads(monkeypatch):
    """TensorRT is imported without the cache of `trt.load`."""
    monkeypatch.setattr(facts, "load", trt.load.__wrapped__)


def summaries(*findings):
    return [(finding.severity, finding.message) for finding in findings]


RTX = trt.TensorRT(
    "tensorrt_rtx",
    SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={"SM86": 0, "SM120": 1})),
    "1.7.1.116",
    trt.Log(),
    None,
)


def test_a_tensorrt_that_loads_is_listed_with_its_compute_capabilities(monkeypatch):
    monkeypatch.setattr(facts, "load", {"tensorrt_rtx": RTX}.get)
    (compiler,) = look_at_compilers({"tensorrt-rtx": "1.7", "tensorrt": None})
    assert summaries(*check_engines((compiler,), ORIN, ""))[:1] == [
        (
            "ok",
            "TensorRT-RTX 1.7.1.116 compiles engines for compute capabilities 8.6, 12.0, "
            "without a GPU",
        )
    ]


def test_this_machines_tensorrt_is_found():
    pytest.importorskip("tensorrt_rtx")
    (compiler,) = look_at_compilers({"tensorrt-rtx": "as installed", "tensorrt": None})
    finding, *_ = check_engines((compiler,), ORIN, "")
    assert finding.severity == "ok"
    assert finding.message.startswith("TensorRT-RTX ")
    assert {"86", "89", "120"} <= set(
        compiler.compute_capabilities
    )  # those in the shipped profiles


def test_a_tensorrt_that_cannot_be_loaded_is_an_error(fresh_loads, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (compiler,) = look_at_compilers({"tensorrt-rtx": None, "tensorrt": "10.3.0"})
    finding, _ = check_engines((compiler,), None, FAULT)
    assert finding.severity == "error"
    assert finding.message.startswith(
        "tensorrt is installed but cannot be loaded: import of tensorrt"
    )
    assert "--system-site-packages" in finding.advice


def test_tensorrt_compiles_for_this_machines_gpu():
    compiler = facts.Compiler("tensorrt", "TensorRT 10.3.0")
    (finding, _) = check_engines((compiler,), ORIN, "")
    assert finding.message == "TensorRT 10.3.0 compiles engines for this machine's GPU"


def test_a_gpu_is_listed_with_its_compute_capability_memory_and_driver(gpu_is):
    gpu_is(ORIN)
    assert summaries(*check_engines((), *look_at_gpu())) == [
        ("ok", "Orin: compute capability 8.7, 8.0 GiB, driver for CUDA 12.6")
    ]


def test_a_missing_gpu_is_a_finding_only_if_tensorrt_is_installed(gpu_is):
    gpu_is(None)
    compiler = facts.Compiler("tensorrt-rtx", "TensorRT-RTX 1.7", "", ("89",))
    assert summaries(*check_engines((compiler,), *look_at_gpu()))[1:] == [
        ("ok", f"engines cannot run here: {FAULT}")
    ]
    assert check_engines((), *look_at_gpu()) == []


def test_the_report_holds_both(gpu_is, monkeypatch):
    gpu_is(ORIN)
    installed = {"tensorrt-rtx": "1.7.1.116", "onnxruntime": "1.20"}
    monkeypatch.setattr(doctor, "installed_version", installed.get)
    monkeypatch.setattr(facts, "load", {"tensorrt_rtx": RTX}.get)
    document = json.loads(json.dumps(doctor.diagnose().to_dict()))
    assert document["gpu"]["compute_capability"] == "87"
    assert [compiler["package"] for compiler in document["compilers"]] == ["tensorrt-rtx"]
