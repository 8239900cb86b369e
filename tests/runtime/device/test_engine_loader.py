"""Engines loaded: TensorRT-RTX's kernels kept from run to run, and a stand-in true to its API."""

import inspect

import numpy as np
import pytest

from mod_edge.bundle.engine_manifest import RUNTIME_CACHE_FILE
from mod_edge.errors import BackendError
from mod_edge.native.trt import load
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import rebase_signature
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.device.engine_loader import EngineLoader
from tests.native import stand_in_tensorrt
from tests.runtime.stand_in_model import Feeder, linked_copy, stand_in_for


@pytest.fixture
def machine(bundle_for, tmp_path):
    """With a bundle of its own: no kernels are kept from other tests."""
    machine = stand_in_for(linked_copy(bundle_for("rtx", "fp16"), tmp_path / "bundle"))
    machine.build()
    yield machine
    machine.close()


def cache_path(machine):
    return machine.bundle.folder / machine.build().settings.folder / RUNTIME_CACHE_FILE


def run_once(machine, size=2):
    """What a stream warned of, once a step was fed and its model closed."""
    with machine.load() as model, model.open_stream() as stream:
        Feeder(stream, machine.config).feed((size,), [5] * size)
    return stream.warnings


# ---- kernels from run to run ----


def test_kernels_compiled_in_one_run_are_there_in_the_next(machine):
    assert run_once(machine) == []
    path = cache_path(machine)
    first = path.read_bytes()
    assert b"layers/05.onnx" in first
    assert run_once(machine, size=3) == []
    assert len(path.read_bytes()) > len(first)
    assert not list(path.parent.glob("*.new"))


def test_a_cache_without_news_is_not_written_again(machine):
    run_once(machine)
    before = cache_path(machine).stat().st_mtime_ns
    run_once(machine)
    assert cache_path(machine).stat().st_mtime_ns == before


def test_another_drivers_cache_is_made_anew_and_told(machine):
    cache_path(machine).write_bytes(b"from another driver")
    (warning,) = run_once(machine)
    assert warning.endswith("is of another driver or GPU: its kernels are compiled anew")
    assert run_once(machine) == []


def test_a_cache_that_cannot_be_written_is_told(machine):
    in_the_way = cache_path(machine).with_name("runtime.cache.new")
    in_the_way.mkdir()
    try:
        (warning,) = run_once(machine)
    finally:
        in_the_way.rmdir()
    assert warning.endswith("(Is a directory): every start compiles its kernels anew")


def test_tensorrt_has_no_such_cache(make_machine):
    machine = make_machine("tensorrt-delta", "fp32")
    run_once(machine)
    assert not cache_path(machine).exists()


# ---- what TensorRT says ----


def test_what_tensorrt_warns_of_is_passed_on_once(machine, monkeypatch):
    deserialize = stand_in_tensorrt.Runtime.deserialize_cuda_engine

    def warns(self, data):
        line = stand_in_tensorrt.LogLine(False, "Using an engine plan file across models of GPUs")
        self._api.log.add(line)
        return deserialize(self, data)

    monkeypatch.setattr(stand_in_tensorrt.Runtime, "deserialize_cuda_engine", warns)
    assert run_once(machine) == ["Using an engine plan file across models of GPUs"]


def test_the_real_runtime_refuses_in_its_own_words(tmp_path, make_config):
    """Its loading of engines needs a driver; that far it is the real one."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    path = tmp_path / "rebase.engine"
    path.write_bytes(np.zeros(5000, np.uint8))
    loader = EngineLoader(load("tensorrt_rtx"), 7, tmp_path / RUNTIME_CACHE_FILE)
    signature = rebase_signature(make_config(), Lowering("rtx", "fp16", Rows(90, 50)))
    with pytest.raises(BackendError, match=r"TensorRT-RTX \S+ cannot load .*rebase\.engine: \S+"):
        loader.engine(path, signature, 1)


def test_the_stand_in_has_tensorrts_own_classes_methods_and_numbers():
    api = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    for name in (
        "Runtime",
        "ICudaEngine",
        "IExecutionContext",
        "IRuntimeConfig",
        "IRuntimeCache",
    ):
        ours, theirs = getattr(stand_in_tensorrt, name), getattr(api, name)
        methods = {
            method
            for method, _ in inspect.getmembers(ours, inspect.isfunction)
            if not method.startswith("_")
        }
        assert methods <= set(dir(theirs))
    for name in (
        "DataType",
        "DynamicShapesKernelSpecializationStrategy",
        "ExecutionContextAllocationStrategy",
        "TensorIOMode",
        "TensorLocation",
    ):
        for member in getattr(stand_in_tensorrt, name):
            assert int(getattr(getattr(api, name), member.name)) == member.value
