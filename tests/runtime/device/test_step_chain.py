"""Steps as CUDA graphs: captured when repeated, kept while in use, with a warning if refused."""

from dataclasses import replace

import numpy as np
import pytest

from mod_edge.plan.kv_window import NO_ROWS
from mod_edge.plan.layout import FRAME
from mod_edge.runtime.device import step_chain
from mod_edge.runtime.loaded_model import StreamLimits
from tests.native.stand_in_driver import Error
from tests.native.stand_in_tensorrt import DynamicShapesKernelSpecializationStrategy
from tests.runtime.stand_in_model import Feeder, stand_in_for

NUM_LAYERS = 6


@pytest.fixture
def machine(make_machine):
    return make_machine("rtx", "fp16")


@pytest.fixture
def feeder(machine):
    return Feeder(machine.open(), machine.config)


def counts(feeder):
    """(layer by layer, captured, launched, refused)."""
    found = feeder.stream._chain.counts
    return found.plain, found.captured, found.launched, found.refused


def test_the_second_step_of_a_shape_is_captured_and_the_third_launched(feeder):
    wanted = [(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 2, 0)]
    found = []
    for _ in wanted:
        feeder.feed((2,), [5, 6])
        found.append(counts(feeder))
    assert found == wanted


def test_each_shape_is_counted_separately(feeder):
    side = feeder.config.vision_config.image_size
    embeds = feeder.stream.encode(np.zeros((2, side, side, 3), np.uint8))
    for pieces, ids, frames in (((1, FRAME), [5], embeds[:1]), ((1,), [6], None)):
        feeder.feed(pieces, ids, frames)
    assert counts(feeder) == (2, 0, 0, 0)
    # The same numbers of text rows and frames in another order: only the row numbers differ.
    feeder.feed((1, FRAME, 1), [5, 6], embeds[:1])
    feeder.feed((2, FRAME), [5, 6], embeds[:1])
    feeder.feed((FRAME, 2), [5, 6], embeds[1:])
    assert counts(feeder) == (3, 1, 1, 0)


def test_launched_steps_equal_steps_run_layer_by_layer(machine, monkeypatch):
    results = []
    for has_room in (True, False):
        monkeypatch.setattr(step_chain.StepChain, "_make_room", lambda _self, has=has_room: has)
        feeder = Feeder(machine.open(), machine.config)
        results.append([feeder.feed((2,), [number, 6]) for number in range(6)])
        assert counts(feeder) == ((1, 1, 4, 0) if has_room else (6, 0, 0, 0))
    np.testing.assert_array_equal(*results)


def test_only_captured_contexts_wait_for_their_kernels(machine):
    feeder = Feeder(machine.open(), machine.config)
    strategy = DynamicShapesKernelSpecializationStrategy
    strategies = machine.tensorrt.api.strategies
    # three graphs that are not layers, and three optimization profiles of every layer
    assert strategies == [strategy.LAZY] * (3 + 3 * NUM_LAYERS)
    for _ in range(2):
        feeder.feed((2,), [5, 6])
    assert strategies[3 + 3 * NUM_LAYERS :] == [strategy.EAGER] * NUM_LAYERS


# ---- steps that cannot be captured ----


def refuse_in_cuda(machine):
    machine.cudart.failures["cudaStreamEndCapture"] = Error.cudaErrorStreamCaptureInvalidated
    return "cudaStreamEndCapture returned cudaErrorStreamCaptureInvalidated"


def refuse_in_tensorrt(machine):
    machine.tensorrt.api.is_capturable = False
    return "TensorRT does not allow it"


def refuse_contexts(machine):
    machine.tensorrt.api.makes_contexts = False
    return "TensorRT-RTX 1.7.1.116 cannot make an execution context: out of memory"


@pytest.mark.parametrize("refuse", [refuse_in_cuda, refuse_in_tensorrt, refuse_contexts])
def test_a_step_that_cannot_be_captured_runs_layer_by_layer_with_one_warning(
    machine, feeder, refuse
):
    ours = [feeder.feed((2,), [5, 6])]
    reason = refuse(machine)
    ours += [feeder.feed((2,), [5, 6]) for _ in range(3)]
    assert counts(feeder)[1:] == (0, 0, 1)
    (warning,) = feeder.stream.warnings
    assert warning.startswith("steps of 2 text tokens and 0 frames run layer by layer, not as one")
    assert reason in warning
    healthy = Feeder(stand_in_for(machine.bundle.folder).open(), machine.config)
    np.testing.assert_array_equal(ours, [healthy.feed((2,), [5, 6]) for _ in range(4)])


# ---- the number of graphs ----


def feed_shapes(feeder, sizes):
    for size in sizes:
        feeder.past = NO_ROWS
        feeder.feed((size,), [5] * size)


def feeder_with_graphs(machine, count):
    """A feeder of a stream that keeps so many graphs."""
    machine.limits = replace(machine.limits, captured_shapes=count)
    return Feeder(machine.open(), machine.config)


def test_graphs_in_use_are_kept(feeder):
    most = StreamLimits.captured_shapes
    feed_shapes(feeder, [size for size in range(1, most + 2) for _ in range(3)])
    assert counts(feeder)[1] == most
    feed_shapes(feeder, [most + 1] * 3)
    assert counts(feeder)[1] == most
    assert feeder.stream.warnings == []


def test_the_least_recently_used_graph_makes_room_for_a_new_one(machine, monkeypatch):
    feeder = feeder_with_graphs(machine, 2)
    monkeypatch.setattr(step_chain, "MIN_IDLE_STEPS", 5)
    feed_shapes(feeder, [1, 1, 2, 2, 3, 3])
    assert list(graphs_of(feeder)) == [1, 2]  # both were used recently
    feed_shapes(feeder, [2, 2, 3])
    assert list(graphs_of(feeder)) == [2, 3]
    assert sum(graph.is_alive for graph in machine.cudart.graphs) == 2


def test_a_graph_is_freed_only_when_the_device_has_finished_it(machine, monkeypatch):
    feeder = feeder_with_graphs(machine, 1)
    monkeypatch.setattr(step_chain, "MIN_IDLE_STEPS", 1)
    for size in (1, 1, 2, 1, 2):
        feeder.step((size,), [5] * size)
    assert list(graphs_of(feeder)) == [2]
    assert sum(graph.is_alive for graph in machine.cudart.graphs) == 2  # it may still run
    feeder.stream.logits([0])
    assert sum(graph.is_alive for graph in machine.cudart.graphs) == 1


def graphs_of(feeder):
    return [shape.num_text for shape in feeder.stream._chain._captured]
