"""Fixtures of the runtime's tests."""

from functools import cache

import pytest

from mod_edge.bundle.bundle import open_bundle
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.cpu.torch_model import TorchModel
from mod_edge.runtime.loaded_model import StreamLimits
from tests.runtime.stand_in_model import (
    DELTA_CAPACITY,
    FRAMES_PER_STEP,
    MAX_STEP_TOKENS,
    linked_copy,
    stand_in_for,
)


@pytest.fixture(scope="session")
def stand_in_bundle(bundle_for, tmp_path_factory):
    """`stand_in_bundle(target, precision)`: a bundle that can get engines of the stand-in."""
    folder = tmp_path_factory.mktemp("stand-in")

    @cache
    def make(target, precision):
        return linked_copy(bundle_for(target, precision), folder / f"{target}-{precision}")

    return make


@pytest.fixture
def make_machine(stand_in_bundle):
    """`make_machine(target, precision)`: a `StandIn` with engines, closed after the test."""
    made = []

    def make(target, precision):
        machine = stand_in_for(stand_in_bundle(target, precision))
        machine.build()
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()


@pytest.fixture(
    params=["onnx delta", "onnx in_place", "torch", "tensorrt-delta", "rtx"], ids=lambda name: name
)
def load(request, any_bundle, tiny_checkpoint, make_machine):
    """`load()`: a fresh model and the rows of its streams' caches."""
    if request.param == "torch":
        reference = Checkpoint(tiny_checkpoint).load_model()
        return lambda: (TorchModel(reference), DELTA_CAPACITY)
    if request.param.startswith("onnx"):
        target = "cuda" if request.param == "onnx in_place" else "cpu"
        bundle = open_bundle(any_bundle(target, "fp32"))
        limits = StreamLimits(
            bundle.lowering.capacity or DELTA_CAPACITY, MAX_STEP_TOKENS, FRAMES_PER_STEP
        )
        return lambda: (OnnxModel(bundle, limits), limits.capacity)
    machine = make_machine(request.param, "fp32")
    return lambda: (machine.load(), machine.limits.capacity)
