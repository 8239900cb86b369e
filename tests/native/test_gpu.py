"""This machine's GPU, or the reason why there is none."""

import re
import sys
from types import SimpleNamespace

import pytest

from mod_edge.errors import BackendError
from mod_edge.native.gpu import Gpu, find_gpu
from mod_edge.native.installed import install_command


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


def test_the_gpu_has_name_compute_capability_memory_and_cuda_version():
    assert find_gpu(cudart()) == Gpu("Orin", "87", 64 * 2**30, "12.6")


def test_a_missing_driver_is_an_error_with_cudas_error_name():
    with pytest.raises(
        BackendError, match="cudaGetDeviceCount returned cudaErrorInsufficientDriver"
    ):
        find_gpu(cudart("cudaErrorInsufficientDriver"))


def test_missing_cuda_python_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=re.escape(install_command("rtx"))):
        find_gpu()
