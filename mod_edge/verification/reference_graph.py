"""One graph's part of the PyTorch reference: its recorded inputs and the expected outputs.

The inputs are the reference's own in the recorded stream, in the graph's layout (`export.step_io`).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor, nn

from mod_edge.export.step_io import Past, StepContext, StepIo, load_reference
from mod_edge.model.layers import rotate
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.loaded_model import Float32Array
from mod_edge.verification.graph_backends import input_metadata
from mod_edge.verification.graph_check import run_steps
from mod_edge.verification.recording import Arrays, GraphRecording, GraphStep, Selections
from mod_edge.verification.reference_recording import Recorder

Weights = Callable[[GraphSignature], Iterable[tuple[str, Tensor]]]

# Rows after the past that a graph must mask, as evicted rows in the runtime's buffer.
STALE_ROWS = 3
NO_CONTEXT = StepContext()


@dataclass(frozen=True)
class ReferenceStep(GraphStep):
    """A recorded step with the context that the reference needs."""

    context: StepContext = NO_CONTEXT


class ReferenceGraph:
    """The part of the reference model that one graph computes."""

    def __init__(
        self,
        model: VideoLLM,
        signature: GraphSignature,
        lowering: Lowering,
        recorder: Recorder,
        original_weights: Weights | None = None,
    ) -> None:
        """Take the graph's steps from `recorder`, which has recorded `model`.

        Args:
            model: the reference in float32, quantized if the bundle is.
            signature: the graph's.
            lowering: the bundle's.
            recorder: of a stream.
            original_weights: returns a graph's weights as in the checkpoint, under the graph's
                names; None if the graph is not to be compared with them.
        """
        self.signature, self.lowering = signature, lowering
        self._model = model
        self._form = lowering.weight_form(signature.kind)
        has_original = original_weights is not None and signature.kind.weight_prefixes
        self._original_weights = original_weights if has_original else None
        self.io = StepIo(model.config, signature, lowering)
        self.steps = tuple(STEPS[signature.kind](self.io, recorder))
        if signature.kind.is_mod and model.config.has_router:
            router = self.module(torch.float32).get_submodule("router")
            self.steps = tuple(
                replace(step, router_logits=_router_logits(router, step.inputs))
                for step in self.steps
            )

    def recording(self) -> GraphRecording:
        """The recording, which hides PyTorch."""
        original = self._original_outputs if self._original_weights else None
        return GraphRecording(self.signature, self.lowering, self.steps, self._outputs, original)

    def module(self, dtype: torch.dtype) -> nn.Module:
        """The reference's module in `dtype`, its router in float32.

        Of a quantized graph it has the dequantized weights and rounds its inputs as the graph does.
        """
        weights = (
            (self.signature.weight_name(name), tensor)
            for name, tensor in self._model.state_dict().items()
            if name.startswith(self.signature.weight_prefixes)
        )
        module = load_reference(self._model.config, self.signature.kind, weights, self._form)
        return module if dtype == torch.float32 else in_dtype(module, dtype)

    def _outputs(self, selections: Selections) -> list[Arrays]:
        return self.run(self.module(torch.float32), torch.float32, selections)

    def _original_outputs(self, selections: Selections) -> list[Arrays]:
        """The outputs with the checkpoint's weights; only this graph's are loaded."""
        assert self._original_weights is not None
        weights = (
            (name, tensor.to(torch.float32))
            for name, tensor in self._original_weights(self.signature)
        )
        module = load_reference(self._model.config, self.signature.kind, weights)
        return self.run(module, torch.float32, selections)

    def run(self, module: nn.Module, dtype: torch.dtype, selections: Selections) -> list[Arrays]:
        """The outputs of `module`, in `dtype`, for every step, as `GraphRecording.outputs`."""
        return run_steps(ReferenceRunner(self, module, dtype, selections), self.steps)


def _vision_steps(_io: StepIo, recorder: Recorder) -> Iterator[ReferenceStep]:
    for name, frames in recorder.frames.items():
        yield ReferenceStep(name, {"frames": frames})


def _head_steps(io: StepIo, recorder: Recorder) -> Iterator[ReferenceStep]:
    for name, rows in recorder.head_rows.items():
        yield ReferenceStep(name, io.head_inputs(rows))


def _rebase_steps(io: StepIo, recorder: Recorder) -> Iterator[ReferenceStep]:
    for name, sink in recorder.sinks.items():
        key = rotate(sink.key, sink.positions, io.frequencies).flatten(0, 1)  # (B, E)
        inputs = io.rebase_inputs(key, sink.num_evicted)
        yield ReferenceStep(name, inputs, context=StepContext(position=sink.num_evicted))


def _layer_steps(io: StepIo, recorder: Recorder) -> Iterator[ReferenceStep]:
    index = io.signature.layer_index
    assert index is not None
    for name, step in recorder.steps.items():
        state = step.states[index]
        key = rotate(state.past.key, state.past.positions, io.frequencies)
        num_stale = STALE_ROWS if io.lowering.binds_unused_rows and len(key) else 0
        num_rows = io.num_cache_rows or max(1, len(key) + num_stale)
        past = Past(
            _with_stale_rows(key, num_rows), _with_stale_rows(state.past.value, num_rows), len(key)
        )
        inputs = io.layer_inputs(state.hidden, step.layout, step.position, past)
        yield ReferenceStep(name, inputs, context=StepContext(step.layout, step.position))


STEPS: dict[GraphKind, Callable[[StepIo, Recorder], Iterator[ReferenceStep]]] = {
    VISION: _vision_steps,
    DENSE: _layer_steps,
    MOD: _layer_steps,
    HEAD: _head_steps,
    REBASE: _rebase_steps,
}


def _with_stale_rows(rows: Tensor, num_rows: int) -> Tensor:
    """`rows` (S, G, E) in a buffer of `num_rows`, repeated to fill it with stale rows.

    A graph needs at least one row, so the buffer of an empty past has one of zeros.
    """
    buffer = rows.new_zeros(num_rows, *rows.shape[1:])
    if len(rows):
        buffer[:] = rows[torch.arange(num_rows) % len(rows)]
    return buffer


@torch.inference_mode()
def _router_logits(router: nn.Module, inputs: Arrays) -> Float32Array:
    """Router logits (F, N) of the rounded inputs."""
    hidden = torch.tensor(inputs["hidden"])[0].float()
    logits: Float32Array = router(hidden[torch.tensor(inputs["frame_index"])])[..., 0].numpy()
    return logits


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def in_dtype(module: AnyModule, dtype: torch.dtype) -> AnyModule:
    """`module` itself converted to `dtype`, except routers, which stay float32 as in graphs."""
    routers = {
        name: deepcopy(part)
        for name, part in module.named_modules()
        if name.rpartition(".")[2] == "router"
    }
    module.to(dtype)
    for name, router in routers.items():
        module.set_submodule(name, router)
    return module


class ReferenceRunner(BaseRunner):  # type: ignore[misc] # Polygraphy ships no types
    """A Polygraphy runner of a module in `dtype`, which is fed the recorded steps in order."""

    def __init__(
        self,
        graph: ReferenceGraph,
        module: nn.Module,
        dtype: torch.dtype,
        selections: Selections,
    ) -> None:
        super().__init__(name=f"torch {str(dtype).removeprefix('torch.')}")
        self._graph, self._module, self._dtype = graph, module, dtype
        self._selections = selections
        self._next = 0

    def activate_impl(self) -> None:
        """Begin with the first step."""
        self._next = 0

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and dims of the inputs."""
        return input_metadata(self._graph.signature)

    def infer_impl(self, feed_dict: Arrays) -> Arrays:
        """The outputs of the next step."""
        step, kept = self._graph.steps[self._next], self._selections.get(self._next)
        assert feed_dict.keys() == step.inputs.keys()
        self._next += 1
        started = time.perf_counter()
        outputs = self._graph.io.outputs(
            self._module, step.inputs, step.context, dtype=self._dtype, kept=kept
        )
        self.inference_time = time.perf_counter() - started
        return outputs
