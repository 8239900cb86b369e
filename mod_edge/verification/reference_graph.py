"""One graph's part of the PyTorch reference: its recorded inputs, and the right outputs for them.

The reference gets exactly what the graph gets, rounded to the graph's dtype, so that each graph is
judged alone. Its layers rotate the keys they have cached by their positions; keys that are rotated
already therefore stand at position 0.
"""

import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor, nn

from mod_edge.export.step_io import ReferenceHead
from mod_edge.model.layers import LayerCache, rotate
from mod_edge.model.video_llm import VideoLLM
from mod_edge.model.vision import FrameEncoder
from mod_edge.plan.graph_kind import HEAD, REBASE, VISION
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.runner import Float32Array, Int64Array
from mod_edge.verification.graph_backends import input_metadata
from mod_edge.verification.graph_check import run_steps
from mod_edge.verification.recording import Arrays, GraphRecording, GraphStep, Selections
from mod_edge.verification.reference_recording import DecoderStep, LayerState, Recorder

# Rows behind the past that a graph must mask: evicted ones stand there in a runtime's buffer.
STALE_ROWS = 3


@dataclass(frozen=True)
class ReferenceStep(GraphStep):
    """A recorded step with what the reference needs besides.

    Attributes:
        layout: of a decoder layer's step.
        position: stream position of its first token; for the rebase graph, tokens evicted so far.
    """

    layout: StepLayout | None = None
    position: int = 0


class ReferenceGraph:
    """The part of the reference model that one graph stands for."""

    def __init__(
        self, model: VideoLLM, signature: GraphSignature, lowering: Lowering, recorder: Recorder
    ) -> None:
        """Take the graph's steps out of what was recorded with `model`."""
        self.signature, self.lowering = signature, lowering
        self._model = model
        self._dtype: torch.dtype = getattr(torch, lowering.dtype)
        self._frequencies = torch.tensor(inverse_frequencies(model.config.text_config))
        self.steps = tuple(self._steps(recorder))

    def recording(self) -> GraphRecording:
        """The recording for judges that know no PyTorch."""
        return GraphRecording(self.signature, self.lowering, self.steps, self._outputs_following)

    def runner(self, dtype: torch.dtype, selections: Selections) -> "ReferenceRunner":
        """A Polygraphy runner that computes in `dtype`, following `selections`."""
        return ReferenceRunner(self, self._module(dtype), dtype, selections)

    def _outputs_following(self, selections: Selections) -> list[Arrays]:
        return run_steps(self.runner(torch.float32, selections), self.steps)

    # ---- inputs ----

    def _steps(self, recorder: Recorder) -> Iterable[ReferenceStep]:
        kind = self.signature.kind
        if kind is VISION:
            for name, frames in recorder.frames.items():
                yield ReferenceStep(name, {"frames": frames})
        elif kind is HEAD:
            for name, rows in recorder.head_rows.items():
                yield ReferenceStep(name, {"hidden": self._fed(rows[None])})
        elif kind is REBASE:
            for name, sink in recorder.sinks.items():
                key = rotate(sink.key, sink.positions, self._frequencies).flatten(0, 1)  # (B, E)
                cos, sin = self._angles(torch.tensor([sink.num_evicted]))
                inputs = {"key": self._fed(key), "cos": cos, "sin": sin}
                yield ReferenceStep(name, inputs, position=sink.num_evicted)
        else:
            index = self.signature.layer_index
            assert index is not None
            for name, step in recorder.steps.items():
                inputs = self._layer_inputs(step, step.states[index])
                logits = self._router_logits(inputs)
                yield ReferenceStep(name, inputs, logits, step.layout, step.position)

    def _layer_inputs(self, step: DecoderStep, state: LayerState) -> Arrays:
        past, layout = state.past, step.layout
        positions = torch.arange(layout.num_tokens) + step.position
        cos, sin = self._angles(positions)
        inputs = {"hidden": self._fed(state.hidden[None]), "cos": cos[None], "sin": sin[None]}
        key = rotate(past.key, past.positions, self._frequencies)
        in_place = self.lowering.dialect == "in_place"
        for spec, rows in zip(self.signature.inputs[3:5], (key, past.value), strict=True):
            buffer = rows.new_zeros(self._num_rows(len(rows)), *rows.shape[1:])
            buffer[: len(rows)] = rows
            if len(rows):
                stale = buffer[len(rows) :]
                stale[:] = rows[torch.arange(len(stale)) % len(rows)]
            fed = buffer.transpose(0, 1)[None] if in_place else buffer
            inputs[spec.name] = self._fed(fed.contiguous())
        inputs["write_index" if in_place else "past_length"] = np.array([len(key)])
        if self.signature.kind.is_mod:
            inputs |= {
                "text_index": layout.text_index,
                "frame_index": layout.frame_index,
                "row_order": layout.row_order,
            }
        return inputs

    @torch.inference_mode()
    def _router_logits(self, inputs: Arrays) -> Float32Array | None:
        """(F, N) of the inputs as they are rounded; None where no router chooses."""
        router = getattr(self._module(torch.float32), "router", None)
        if router is None:
            return None
        hidden = torch.tensor(inputs["hidden"])[0].float()
        logits: Float32Array = router(hidden[torch.tensor(inputs["frame_index"])])[..., 0].numpy()
        return logits

    def _num_rows(self, num_past: int) -> int:
        """Rows of the past's buffer; a graph cannot bind none, so the first step has one unused."""
        capacity = self.lowering.capacity
        if capacity is None:
            return num_past + STALE_ROWS if num_past else 1
        return capacity.of(self.signature.kind.is_mod)

    def _angles(self, positions: Tensor) -> tuple[np.ndarray, np.ndarray]:
        angles = positions.to(torch.float64)[:, None] * self._frequencies
        return angles.cos().float().numpy(), angles.sin().float().numpy()

    def _fed(self, tensor: Tensor) -> np.ndarray:
        """In the graph's dtype; bfloat16, which numpy lacks, rounded to it but held as float32."""
        rounded = tensor.to(self._dtype)
        return (rounded.float() if self._dtype == torch.bfloat16 else rounded).numpy()

    # ---- outputs ----

    @torch.inference_mode()
    def outputs(
        self,
        module: nn.Module | None,
        dtype: torch.dtype,
        step: ReferenceStep,
        kept: Int64Array | None,
    ) -> Arrays:
        """A step's outputs, as float32 and int64.

        Args:
            module: the reference's, in `dtype`; None where the graph has no weights.
            dtype: to compute in.
            step: one of `steps`.
            kept: (F, K), a selection to follow instead of the module's own.
        """
        # A copy: the layout's arrays are read-only, which torch cannot respect.
        fed = {name: torch.tensor(array) for name, array in step.inputs.items()}
        if module is None:
            evicted = torch.tensor([step.position])
            turned = rotate(fed["key"][:, None].to(dtype), evicted, self._frequencies)[:, 0]
            return {"rebased_key": turned.float().numpy()}
        if self.signature.kind is VISION:
            return {"frame_embeds": module(fed["frames"]).float().numpy()}
        if self.signature.kind is HEAD:
            return {"logits": module(fed["hidden"][0].to(dtype))[None].float().numpy()}
        assert step.layout is not None
        cache = self._past(fed, dtype)
        num_past = len(cache.positions)
        positions = torch.arange(step.layout.num_tokens) + step.position
        forced = () if kept is None else (torch.tensor(kept),)
        new_hidden, selection = module(
            fed["hidden"][0].to(dtype), step.layout, positions, cache, *forced
        )
        new_key = rotate(cache.key[num_past:], cache.positions[num_past:], self._frequencies)
        outputs = {"new_hidden": new_hidden[None].float().numpy()}
        for name, rows in (("key", new_key), ("value", cache.value[num_past:])):
            if self.lowering.dialect == "delta":
                outputs[f"new_{name}"] = rows.float().numpy()
                continue
            present = fed[f"past_{name}"].float().clone()  # (1, G, S, E)
            present[0, :, num_past : num_past + len(rows)] = rows.float().transpose(0, 1)
            outputs[f"present_{name}"] = present.numpy()
        return outputs if selection is None else outputs | {"kept": selection.numpy()}

    def _past(self, fed: dict[str, Tensor], dtype: torch.dtype) -> LayerCache:
        key, value = fed["past_key"].to(dtype), fed["past_value"].to(dtype)
        if self.lowering.dialect == "delta":
            num_past = int(fed["past_length"])
        else:
            num_past = int(fed["write_index"])
            key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)
        no_turn = torch.zeros(num_past, dtype=torch.int64)
        return LayerCache(key[:num_past], value[:num_past], no_turn)

    def _module(self, dtype: torch.dtype) -> nn.Module | None:
        """The reference's own module, a copy where `dtype` is not its own."""
        kind, model = self.signature.kind, self._model
        if kind is REBASE:
            return None
        if self.signature.layer_index is not None:
            layer = model.model.layers[self.signature.layer_index]
            return layer if dtype == torch.float32 else in_dtype(deepcopy(layer), dtype)
        with torch.device("meta"):
            part: nn.Module = (FrameEncoder if kind is VISION else ReferenceHead)(model.config)
        prefix = "model." if kind is HEAD else ""
        weights = {**model.state_dict(prefix=""), "model.lm_head.weight": model.lm_head.weight}
        held = {name: weights[prefix + name].to(dtype) for name in part.state_dict()}
        part.load_state_dict(held, assign=True)
        return part.eval()


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def in_dtype(module: AnyModule, dtype: torch.dtype) -> AnyModule:
    """`module` itself turned to `dtype`, but for routers, which graphs keep in float32 too."""
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
    """A reference graph for Polygraphy's Comparator, which feeds the recorded steps in order."""

    def __init__(
        self,
        graph: ReferenceGraph,
        module: nn.Module | None,
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
        outputs = self._graph.outputs(self._module, self._dtype, step, kept)
        self.inference_time = time.perf_counter() - started
        return outputs
