"""Loading engines: TensorRT-RTX's kernel cache, and a stand-in with the same API."""

import inspect
import os

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
    """A machine with its own bundle, without kernels from other tests."""
    machine = stand_in_for(linked_copy(bundle_for("rtx", "fp16"), tmp_path / "bundle"))
    machine.build()
    yield machine
    machine.close()


def cache_path(machine):
    return machine.bundle.folder / machine.build().settings.folder / RUNTIME_CACHE_FILE


def run_once(machine, size=2):
    """Feed one step and close the model; returns the stream's warnings."""
    with machine.load() as model, model.open_stream() as stream:
        Feeder(stream, machine.config).feed((size,), [5] * size)
    return stream.warnings


# ---- the kernel cache ----


def test_kernels_compiled_in_one_run_are_used_in_the_next(machine):
    assert run_once(machine) == []
    path = cache_path(machine)
    first = path.read_bytes()
    assert b"layers/05.onnx" in first
    assert run_once(machine, size=3) == []
    assert len(path.read_bytes()) > len(first)
    assert not list(path.parent.glob("*.new"))


def test_an_unchanged_kernel_cache_is_not_written_again(machine):
    run_once(machine)
    before = cache_path(machine).stat().st_mtime_ns
    run_once(machine)
    assert cache_path(machine).stat().st_mtime_ns == before


def test_another_drivers_kernel_cache_is_replaced_with_a_warning(machine):
    cache_path(machine).write_bytes(b"from another driver")
    (warning,) = run_once(machine)
    assert warning.endswith("is for another driver or GPU: kernels are compiled again")
    assert run_once(machine) == []


def test_a_folder_where_no_kernel_cache_can_be_written_is_a_warning_while_the_stream_runs(
    machine, monkeypatch
):
    folder = cache_path(machine).parent
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    warnings = [f"{folder} cannot be written: every start compiles the kernels again"]
    with machine.load() as model, model.open_stream() as stream:
        Feeder(stream, machine.config).feed((2,), [5, 5])
        assert stream.warnings == warnings


def test_a_kernel_cache_that_cannot_be_written_in_the_end_is_logged(machine, caplog):
    cache_path(machine).mkdir()
    try:
        assert run_once(machine) == []
    finally:
        cache_path(machine).rmdir()
    (message,) = caplog.messages
    assert message.endswith("(Is a directory): every start compiles the kernels again")


def test_tensorrt_has_no_kernel_cache(make_machine):
    machine = make_machine("tensorrt-delta", "fp32")
    run_once(machine)
    assert not cache_path(machine).exists()


# ---- TensorRT's messages ----


def test_tensorrts_warnings_are_passed_on_once(machine):
    machine.tensorrt.api.load_warning = "Using an engine plan file across models of GPUs"
    assert run_once(machine) == ["Using an engine plan file across models of GPUs"]


def test_the_real_runtimes_error_message_is_passed_on(tmp_path, make_config):
    """Uses the real runtime, which fails to load an engine without a driver."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    path = tmp_path / "rebase.engine"
    path.write_bytes(np.zeros(5000, np.uint8))
    loader = EngineLoader(load("tensorrt_rtx"), 7, tmp_path / RUNTIME_CACHE_FILE)
    signature = rebase_signature(make_config(), Lowering("rtx", "fp16", Rows(90, 50)))
    with pytest.raises(BackendError, match=r"TensorRT-RTX \S+ cannot load .*rebase\.engine: \S+"):
        loader.engine(path, signature, 1)


def test_the_stand_in_has_tensorrts_classes_methods_and_enum_values():
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
