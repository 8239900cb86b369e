"""The process's thread pool, with a stand-in for ONNX Runtime's, and its arena, in a process."""

import subprocess
import sys
from pathlib import Path

import pytest

from mod_edge.errors import BackendError, ConfigError
from mod_edge.native import onnx_session
from mod_edge.native.onnx_session import num_threads, session_options, set_num_threads


@pytest.fixture
def pools(monkeypatch):
    """Sizes of the pools that are created, in a process that has none and six usable cores."""
    onnxruntime = pytest.importorskip("onnxruntime")
    created = []
    monkeypatch.setattr(
        onnxruntime, "set_global_thread_pool_sizes", lambda intra, inter: created.append(intra)
    )
    monkeypatch.setattr(onnx_session, "_has_pool", False)
    monkeypatch.setattr(onnx_session, "_chosen_threads", None)
    monkeypatch.setattr(onnx_session, "usable_cores", lambda: 6)
    return created


def test_the_pool_has_a_thread_per_usable_core_and_is_created_once(pools):
    for _ in range(2):
        assert not session_options().use_per_session_threads
    assert pools == [6]
    assert num_threads() == 6


def test_the_pool_has_the_chosen_number_of_threads(pools):
    set_num_threads(3)
    session_options()
    assert pools == [3]
    assert num_threads() == 3


def test_another_number_after_the_first_session_is_an_error(pools):
    session_options()
    set_num_threads(6)
    with pytest.raises(ConfigError, match="has 6 threads in this process already, wanted 2"):
        set_num_threads(2)
    assert num_threads() == 6


def test_an_onnxruntime_without_shared_threads_is_too_old(pools, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.delattr(onnxruntime, "set_global_thread_pool_sizes")
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    with pytest.raises(BackendError, match=r"1\.22\.1 is too old, wanted 1\.23 or newer.*upgrade"):
        session_options()


def test_a_session_on_a_gpu_keeps_its_own_arenas(pools):
    """On an H200 a MoD layer's session with shared ones ended the process (CUDA failure 800)."""
    entry = "session.use_env_allocators"
    assert session_options(shares_arena=False).get_session_config_entry(entry) == "0"
    assert session_options().get_session_config_entry(entry) == "1"


def test_only_a_session_on_a_gpu_loads_the_cuda_libraries_and_only_once(pools, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    loads = []

    def preload_dlls():
        loads.append(1)
        sys.stdout.write("Failed to load libcublas.so.12\n")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    onnx_session._load_cuda_libraries.cache_clear()
    session_options()
    assert loads == []
    for _ in range(2):
        session_options(shares_arena=False)
    assert loads == [1]
    assert capsys.readouterr().out == ""


# Eight sessions run one after the other; each squares a tensor of 32 MiB that exists only inside.
STEPS = """
from onnx import TensorProto, helper
import numpy as np, onnxruntime
from mod_edge.native.onnx_session import session_options

def anonymous_mib():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:")) / 1024

value = helper.make_tensor_value_info
nodes = [
    helper.make_node("Expand", ["x", "dims"], ["large"]),
    helper.make_node("Mul", ["large", "large"], ["squared"]),
    helper.make_node("ReduceSum", ["squared"], ["sum"], keepdims=0),
]
graph = helper.make_graph(
    nodes,
    "large",
    [value("x", TensorProto.FLOAT, [1]), value("dims", TensorProto.INT64, [1])],
    [value("sum", TensorProto.FLOAT, [])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
sessions = [
    onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    for _ in range(8)
]
before = anonymous_mib()
for session in sessions:
    session.run(None, {"x": np.ones(1, np.float32), "dims": np.array([2**23])})
print(anonymous_mib() - before)
"""
# Measured 66; with an arena for every session 528.
MOST_MIB = 256


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_sessions_take_the_memory_of_a_step_from_one_arena():
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < MOST_MIB
