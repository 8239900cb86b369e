"""The GPU that engines are compiled for: the requested one, this machine's, the profile's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mod_edge.errors import BackendError, ConfigError
from mod_edge.export import compute_capability
from mod_edge.export.compute_capability import choose_compute_capability
from mod_edge.native import trt
from mod_edge.native.gpu import Gpu
from mod_edge.profiles import load_profile

ORIN = Gpu("Orin", "87", 64 * 2**30, "12.6")
ADA = Gpu("NVIDIA GeForce RTX 4090", "89", 24 * 2**30, "13.0")
CAPABILITIES = {f"SM{number}": None for number in (75, 80, 86, 89, 120, 121)}
RTX = trt.TensorRT(
    "tensorrt_rtx",
    SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={"NONE": 0, **CAPABILITIES})),
    "1.7.1.116",
    trt.Log(),
    None,
)
TENSORRT = trt.TensorRT("tensorrt", None, "10.15.1", trt.Log(), None)


@pytest.fixture
def machine_has(monkeypatch):
    """`machine_has(gpu)`: this machine has that GPU; `machine_has()`: it has none."""

    def put(found=None):
        def find():
            if found is None:
                raise BackendError("no NVIDIA GPU can be used here")
            return found

        monkeypatch.setattr(compute_capability, "find_gpu", find)

    put()
    return put


def profile_for(*compute_capabilities):
    return replace(load_profile("rtx-ada"), compute_capabilities=compute_capabilities)


# ---- TensorRT-RTX ----


@pytest.mark.parametrize(("requested", "chosen"), [("89", "89"), ("8.6", "86"), ("12.0", "120")])
def test_the_requested_one_comes_first(machine_has, requested, chosen):
    machine_has(ADA)
    assert choose_compute_capability(RTX, profile_for("121"), requested) == chosen


@pytest.mark.parametrize("requested", ["", "x", "8", "8.9.1", "SM89", "12345"])
def test_anything_but_a_compute_capability_is_refused(machine_has, requested):
    with pytest.raises(ConfigError, match=r"wanted one like 8\.9$"):
        choose_compute_capability(RTX, profile_for("89"), requested)


def test_this_machines_gpu_comes_before_the_profiles(machine_has):
    machine_has(ADA)
    assert choose_compute_capability(RTX, profile_for("86", "89"), None) == "89"
    assert choose_compute_capability(RTX, profile_for(), None) == "89"


def test_a_gpu_that_the_profile_does_not_cover_is_refused(machine_has):
    machine_has(ADA)
    with pytest.raises(ConfigError, match=r"has compute capability 8\.9, .* is for 8\.6, 12\.0"):
        choose_compute_capability(RTX, profile_for("86", "120"), None)


def test_without_a_gpu_the_profiles_only_one_is_taken(machine_has):
    assert choose_compute_capability(RTX, profile_for("86"), None) == "86"


@pytest.mark.parametrize(
    ("capabilities", "named"), [(("86", "87"), "8.6, 8.7"), ((), "of all GPUs")]
)
def test_without_a_gpu_several_are_ambiguous(machine_has, capabilities, named):
    with pytest.raises(ConfigError, match=rf"capabilities {named}, .*give --compute-capability"):
        choose_compute_capability(RTX, profile_for(*capabilities), None)


def test_a_gpu_that_rtx_does_not_support_is_refused_with_the_supported_ones(machine_has):
    with pytest.raises(ConfigError, match=r"capability 8\.7, only for 7\.5, .*, 12\.1"):
        choose_compute_capability(RTX, profile_for("87"), None)


# ---- TensorRT ----


def test_tensorrt_compiles_for_this_machines_gpu(machine_has):
    machine_has(ORIN)
    assert choose_compute_capability(TENSORRT, profile_for("87"), None) == "87"
    assert choose_compute_capability(TENSORRT, profile_for("89"), "8.7") == "87"


def test_tensorrt_does_not_compile_for_another_gpu(machine_has):
    machine_has(ORIN)
    with pytest.raises(
        ConfigError, match=r"capability 11\.0: .* has 8\.7; build on the device itself"
    ):
        choose_compute_capability(TENSORRT, profile_for("110"), "110")


def test_tensorrt_without_a_gpu_is_an_error(machine_has):
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        choose_compute_capability(TENSORRT, profile_for("87"), None)
