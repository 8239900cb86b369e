"""TensorRT and TensorRT-RTX: loading, differences between versions, logs and build settings."""

import logging
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from mod_edge.errors import BackendError
from mod_edge.native import trt
from mod_edge.native.installed import install_command
from mod_edge.plan.targets import TARGETS


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return trt.load("tensorrt_rtx")


def stand_in(compiler, version, **api):
    """A TensorRT of that version whose module has `api`."""
    return trt.TensorRT(compiler, SimpleNamespace(**api), version, trt.Log(), None)


# ---- loading ----


def test_no_optional_package_is_imported_before_it_is_needed():
    code = (
        "import sys, mod_edge.bundle.bundle, mod_edge.export.engines, mod_edge.native.trt; "
        "heavy = {'torch', 'onnx', 'onnx_graphsurgeon', 'polygraphy', 'onnxruntime', 'tensorrt', "
        "'tensorrt_rtx', 'cuda'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_loading_twice_returns_the_same_object_and_logger(rtx):
    again = trt.load("tensorrt_rtx")
    assert again is rtx
    assert again.native_logger is rtx.native_logger
    assert rtx.is_rtx
    assert rtx.name == f"TensorRT-RTX {rtx.version}"


@pytest.mark.parametrize(
    ("compiler", "advice"),
    [("tensorrt", "--system-site-packages"), ("tensorrt_rtx", re.escape(install_command("rtx")))],
)
def test_a_missing_tensorrt_is_an_error_with_the_install_command(monkeypatch, compiler, advice):
    monkeypatch.setitem(sys.modules, compiler, None)  # None: the import fails
    with pytest.raises(BackendError, match=f"cannot be imported here; .*{advice}"):
        trt.load.__wrapped__(compiler)


def test_a_missing_native_library_is_named_in_the_error(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendError, match=r"here \(libnvinfer\.so\.10: cannot open\); a Jetson"):
        trt.load.__wrapped__("tensorrt")


# ---- versions ----


WITH_CACHE = type("INetworkDefinition", (), {"add_kv_cache_update": None})
WITHOUT_CACHE = type("INetworkDefinition", (), {})


@pytest.mark.parametrize(
    ("compiler", "version", "network", "target"),
    [
        ("tensorrt", "10.3.0.30", WITHOUT_CACHE, "tensorrt-delta"),
        ("tensorrt", "10.13.3.9", WITHOUT_CACHE, "tensorrt-delta"),
        ("tensorrt", "10.15.1.29", WITH_CACHE, "tensorrt-delta"),
        ("tensorrt", "10.15.1.29", WITH_CACHE, "tensorrt"),
        ("tensorrt", "11.4.1", WITH_CACHE, "tensorrt"),
        ("tensorrt_rtx", "1.7.1.116", WITH_CACHE, "rtx"),
    ],
)
def test_versions_with_a_targets_ops_are_accepted(compiler, version, network, target):
    trt.require_target(stand_in(compiler, version, INetworkDefinition=network), TARGETS[target])


@pytest.mark.parametrize(
    ("compiler", "version", "target", "advice"),
    [
        ("tensorrt", "8.6.2", "tensorrt-delta", "8.6.2 is too old, wanted 10.3 or newer"),
        ("tensorrt", "10.13.3.9", "tensorrt", "since 10.15.*--target tensorrt-delta"),
        ("tensorrt_rtx", "1.2.0.54", "rtx", "pip install -U tensorrt-rtx"),
    ],
)
def test_other_versions_are_an_error_with_what_to_do(compiler, version, target, advice):
    tensorrt = stand_in(compiler, version, INetworkDefinition=WITHOUT_CACHE)
    with pytest.raises(BackendError, match=advice):
        trt.require_target(tensorrt, TARGETS[target])


def test_the_strongly_typed_flag_is_passed_if_it_exists():
    flags = SimpleNamespace(STRONGLY_TYPED=1)
    assert trt.network_flags(stand_in("tensorrt", "10.3", NetworkDefinitionCreationFlag=flags)) == 2
    bare = stand_in("tensorrt", "12.0", NetworkDefinitionCreationFlag=SimpleNamespace())
    assert trt.network_flags(bare) == 0


def test_only_rtx_compiles_for_other_gpus(rtx):
    assert {"86", "89", "120"} <= set(rtx.compute_capabilities)
    assert stand_in("tensorrt", "11.4.1").compute_capabilities == ()


# ---- the log ----


def test_lines_of_many_threads_are_all_collected():
    log = trt.Log()

    def speak(number):
        for _ in range(200):
            log.add(trt.LogLine(is_error=False, text=str(number)))

    with log.collected() as lines:
        threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(line.text for line in lines) == sorted("0123" * 200)


def test_lines_outside_a_collecting_block_go_to_pythons_logging(caplog):
    log = trt.Log()
    with log.collected() as lines:
        pass
    with caplog.at_level(logging.WARNING):
        log.add(trt.LogLine(is_error=True, text="cannot do it"))
        log.add(trt.LogLine(is_error=False, text="might do 100%"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "cannot do it"),
        ("WARNING", "might do 100%"),
    ]
    assert lines == []


def test_tensorrts_messages_are_collected(rtx, tmp_path):
    api = rtx.api
    with rtx.log.collected() as lines:
        network = api.Builder(rtx.native_logger).create_network(trt.network_flags(rtx))
        api.OnnxParser(network, rtx.native_logger).parse_from_file(str(tmp_path / "none.onnx"))
    assert any(line.is_error and "none.onnx" in line.text for line in lines)


# ---- build settings ----


@pytest.mark.parametrize("compute_capability", ["86", "89", "120"])
def test_rtx_is_configured_for_the_gpu_and_without_tf32(rtx, compute_capability):
    api = rtx.api
    builder = api.Builder(rtx.native_logger)
    config = trt.builder_config(
        rtx,
        builder,
        compute_capability=compute_capability,
        workspace_mib=7,
        builder_optimization_level=2,
    )
    assert config.num_compute_capabilities == 1
    assert config.get_compute_capability(0).name == f"SM{compute_capability}"
    assert not config.get_flag(api.BuilderFlag.TF32)
    assert config.max_aux_streams == 0
    assert config.builder_optimization_level == 2
    assert config.get_memory_pool_limit(api.MemoryPoolType.WORKSPACE) == 7 * 2**20


class StandInConfig:
    """Accepts timing caches like TensorRT: not damaged ones or those of another device."""

    def __init__(self):
        self.timing_cache = None

    def create_timing_cache(self, data):
        return None if data == b"damaged" else SimpleNamespace(data=data, serialize=lambda: data)

    def set_timing_cache(self, timing_cache, ignore_mismatch):
        assert not ignore_mismatch
        if timing_cache.data == b"another device":
            return False
        self.timing_cache = timing_cache
        return True

    def get_timing_cache(self):
        return self.timing_cache


@pytest.mark.parametrize(
    ("stored", "used"),
    [(b"", b""), (b"good", b"good"), (b"damaged", b""), (b"another device", b"")],
)
def test_tensorrt_uses_a_timing_cache_that_fits_or_else_a_new_one(stored, used):
    tensorrt, config = stand_in("tensorrt", "10.15"), StandInConfig()
    trt.set_timing_cache(tensorrt, config, stored)
    assert config.timing_cache.data == used
    assert trt.timing_cache_bytes(tensorrt, config) == used


def test_rtx_gets_no_timing_cache():
    config = StandInConfig()
    tensorrt = stand_in("tensorrt_rtx", "1.7")
    trt.set_timing_cache(tensorrt, config, b"good")
    assert config.timing_cache is None
    assert trt.timing_cache_bytes(tensorrt, config) == b""
