"""This machine's GPU: what is told of it, and why there is none."""

import sys
from types import SimpleNamespace

import pytest

from mod_edge.errors import BackendError
from mod_edge.native.gpu import Gpu, find_gpu


def cudart(status="cudaSuccess"):
    success = SimpleNamespace(name="cudaSuccess")
    answer = success if status == "cudaSuccess" else SimpleNamespace(name=status)
    properties = SimpleNamespace(name=b"Orin\0\0\0", major=8, minor=7, totalGlobalMem=64 * 2**30)
    return SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=success),
        cudaGetLastError=lambda: (answer,),
        cudaGetDeviceCount=lambda: (answer, 1),
        cudaGetDeviceProperties=lambda number: (success, properties),
        cudaDriverGetVersion=lambda: (success, 12060),
    )


def test_the_gpu_is_told_by_name_compute_capability_memory_and_driver():
    assert find_gpu(cudart()) == Gpu("Orin", "87", 64 * 2**30, "12.6")


def test_no_driver_is_an_error_with_cudas_name_for_it():
    with pytest.raises(BackendError, match=r"cudaGetDeviceCount gives cudaErrorInsufficientDriver"):
        find_gpu(cudart("cudaErrorInsufficientDriver"))


def test_no_cuda_python_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"cuda-python does not load.*mod-edge\[rtx\]"):
        find_gpu()
