"""ONNX Runtime on the CPU: one session per graph, bound to preallocated buffers.

The model holds sessions, embedding table and scratch memory; a stream holds its cache and bindings.
A cache is never copied: a step of `delta` graphs binds views of it (past in, new rows out);
`in_place` graphs bind all of it once, as input and output at one address.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from mod_edge.bundle.bundle import Bundle
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError
from mod_edge.native.freed_memory import return_freed_memory
from mod_edge.native.int8_products import (
    any_int8_products,
    exact_int8_products,
    graph_session_options,
)
from mod_edge.native.native_path import native_path
from mod_edge.native.onnx_session import names_dtypes_dims, num_threads, session_options
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.rope import StepAngles
from mod_edge.plan.signature import (
    GraphSignature,
    head_signature,
    layer_signature,
    vision_signature,
)
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import WeightForm
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.runtime.embedding import Embedding
from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    LoadedModel,
    StreamLimits,
    StreamState,
    UInt8Array,
    require_last_step,
    require_room,
)

PROVIDER = "CPUExecutionProvider"
# Graphs that are opened at a time. Each holds its weights twice meanwhile, as stored and as packed.
MOST_OPENED = 4

Array = npt.NDArray[Any]


@dataclass
class GraphClock:
    """Seconds that a model's graphs have run."""

    seconds: float = 0.0


class OnnxModel(LoadedModel):
    """A bundle's graphs of either dialect, one thread pool for all of them."""

    def __init__(self, bundle: Bundle, limits: StreamLimits) -> None:
        """Load all graphs and allocate the scratch memory of a step.

        Args:
            bundle: with every layer; not in bf16, which this provider does not compute.
            limits: of every stream; `in_place` graphs have their own capacity.

        Raises:
            BackendError: a graph does not load or runs on another provider, a graph or the
                embedding table does not match the config, or the precision is bf16.
        """
        folder, config, lowering = bundle.folder, bundle.config, bundle.lowering
        if lowering.precision == "bf16":
            raise BackendError(
                f"{folder} is in bf16, which onnxruntime does not compute on a CPU; export with "
                "--precision fp16 or fp32"
            )
        text, dtype = config.text_config, lowering.dtype
        self.name = f"onnx ({_environment(lowering)})"
        self.config, self.lowering, self.limits = config, lowering, limits
        self.embedding = Embedding(folder, config, lowering)
        frames, tokens = limits.frames_per_step, limits.max_step_tokens
        self.angles = StepAngles(text, tokens)
        shape = (tokens, text.head_dim // 2)
        self.cos, self.sin = np.empty(shape, np.float32), np.empty(shape, np.float32)
        # Layers alternate: each reads one and writes the other.
        self.hidden = [np.empty((tokens, text.hidden_size), dtype) for _ in range(2)]
        self.kept = {
            index: np.zeros((frames, config.num_kept), np.int64) for index in config.mod_layers
        }
        self._head_rows = np.empty((frames, text.hidden_size), dtype)
        self._logits = np.empty((frames, text.vocab_size), np.float32)
        self._frame_embeds = np.empty(
            (limits.frames_per_encode, config.frame_num_tokens, text.hidden_size), dtype
        )

        self._clock = GraphClock()

        def open_graph(signature: GraphSignature) -> "_Graph":
            form = lowering.weight_form(signature.kind)
            return _Graph(bundle.folder / signature.file, signature, form, self._clock)

        layers = range(text.num_hidden_layers)
        signatures = [
            vision_signature(config, lowering),
            *(layer_signature(config, index, lowering) for index in layers),
            head_signature(config, lowering),
        ]
        self._vision, *self.layers, self._head = _opened(bundle, signatures, open_graph)
        self._encoding, self._reading = self._vision.bindings(), self._head.bindings()

    @property
    def graph_seconds(self) -> float:
        return self._clock.seconds

    def open_stream(self) -> "OnnxStream":
        return OnnxStream(self)

    def with_layers(self, config: ModelConfig, order: Sequence[int], capacity: Rows) -> "OnnxModel":
        other = copy.copy(self)
        other.config = config
        if self.lowering.capacity is not None:
            other.lowering = replace(self.lowering, capacity=capacity)
        other.limits = replace(self.limits, capacity=capacity)
        other.layers = [self.layers[layer] for layer in order]
        other.kept = {
            place: self.kept[layer] for place, layer in enumerate(order) if layer in self.kept
        }
        return other

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        embeds = self._frame_embeds[: len(frames)]
        self.encode_into(frames, embeds)
        return embeds

    def encode_into(self, frames: UInt8Array, embeds: Array) -> None:
        """Write the embeddings (F, N, D) of RGB frames (F, I, I, 3) into `embeds`."""
        self._encoding.bind_input("frames", frames)
        self._encoding.bind_output("frame_embeds", embeds)
        self._encoding.run()

    def logits(self, rows: Sequence[int]) -> Float32Array:
        """(len(rows), V) logits of these rows of the last step."""
        num_rows = len(rows)
        final = self.hidden[len(self.layers) % 2]
        inputs, logits = self._head_rows[:num_rows], self._logits[:num_rows]
        np.take(final, rows, axis=0, out=inputs)
        self._reading.bind_input("hidden", inputs[None])
        self._reading.bind_output("logits", logits[None])
        self._reading.run()
        return logits


class OnnxStream(StreamState):
    """One stream's cache on an `OnnxModel`, and every layer's bindings to it."""

    def __init__(self, model: OnnxModel) -> None:
        """Allocate an empty cache.

        Raises:
            CacheError: not enough memory.
        """
        config, lowering, limits = model.config, model.lowering, model.limits
        text, dtype = config.text_config, lowering.dtype
        self.name = model.name
        self._model = model
        self._is_in_place = lowering.dialect == "in_place"
        self._cache = KvCache(config, lowering, lowering.capacity or limits.capacity)
        self._layers = [graph.bindings() for graph in model.layers]
        self._past_length = {is_mod: np.zeros(1, np.int64) for is_mod in (False, True)}
        # The first step has no past, but zero rows cannot be bound: bind one masked row.
        self._no_past = np.zeros((1, text.num_key_value_heads, text.head_dim), dtype)
        self._frame_embeds = np.empty(
            (limits.frames_per_step, config.frame_num_tokens, text.hidden_size), dtype
        )
        self._layout: StepLayout | None = None
        self._step = model.num_steps
        if self._is_in_place:
            self._bind_whole_cache()

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        embeds = self._frame_embeds[: len(frames)]
        self._model.encode_into(frames, embeds)
        return embeds

    def copy_embeds(self, embeds: FrameEmbeds) -> FrameEmbeds:
        own = self._frame_embeds[: len(embeds)]
        np.copyto(own, np.asarray(embeds))
        return own

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        model = self._model
        added = require_room(layout, past, self._cache.capacity, model.limits.max_step_tokens)
        hidden = model.hidden[0]
        hidden[layout.text_index] = model.embedding.rows(token_ids)
        if frame_embeds is not None:
            hidden[layout.frame_index] = np.asarray(frame_embeds)
        rows = slice(layout.num_tokens)
        model.angles.write(position, model.cos[rows], model.sin[rows])
        if layout is not self._layout:
            self._bind_layout(layout)
        self._past_length[False][0], self._past_length[True][0] = past
        if not self._is_in_place:
            self._bind_views(past, added)
        model.num_steps += 1
        self._step = model.num_steps
        for layer in self._layers:
            layer.run()

    def logits(self, rows: Sequence[int]) -> Float32Array:
        require_last_step(self._model, self._step)
        return self._model.logits(rows)

    def evict(self, eviction: Eviction) -> None:
        self._cache.evict(eviction)

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        require_last_step(self._model, self._step)
        num_frames = self._layout.num_frames if self._layout else 0
        return {index: kept[:num_frames] for index, kept in self._model.kept.items()}

    def _bind_whole_cache(self) -> None:
        for layer, buffers in zip(self._layers, self._cache.layers, strict=True):
            for name, buffer in (("key", buffers.key), ("value", buffers.value)):
                # One address for both, or ONNX Runtime copies the whole cache in every step.
                layer.bind_input(f"past_{name}", buffer)
                layer.bind_output(f"present_{name}", buffer)

    def _bind_views(self, past: Rows, added: Rows) -> None:
        for layer, buffers in zip(self._layers, self._cache.layers, strict=True):
            num_past, num_new = past.of(buffers.is_mod), added.of(buffers.is_mod)
            for name, buffer in (("key", buffers.key), ("value", buffers.value)):
                layer.bind_input(f"past_{name}", buffer[:num_past] if num_past else self._no_past)
                layer.bind_output(f"new_{name}", buffer[num_past : num_past + num_new])

    def _bind_layout(self, layout: StepLayout) -> None:
        """Bind what depends on the step's shape only; steps of the same shape reuse it."""
        model, tokens = self._model, slice(0, layout.num_tokens)
        for index, layer in enumerate(self._layers):
            is_mod = index in model.kept
            layer.bind_input("hidden", model.hidden[index % 2][None, tokens])
            layer.bind_input("cos", model.cos[None, tokens])
            layer.bind_input("sin", model.sin[None, tokens])
            count = "write_index" if self._is_in_place else "past_length"
            layer.bind_input(count, self._past_length[is_mod])
            layer.bind_output("new_hidden", model.hidden[(index + 1) % 2][None, tokens])
            if is_mod:
                layer.bind_input("text_index", layout.text_index)
                layer.bind_input("frame_index", layout.frame_index)
                layer.bind_input("row_order", layout.row_order)
                layer.bind_output("kept", model.kept[index][: layout.num_frames])
        # Bindings hold bare addresses: this reference keeps the layout's arrays alive.
        self._layout = layout


def _environment(lowering: Lowering) -> str:
    """ONNX Runtime's version, its threads, and how int8 weights are multiplied if there are any."""
    facts = [f"onnxruntime {onnxruntime.__version__}", "CPU", f"threads {num_threads()}"]
    if lowering.is_quantized:
        facts.append(f"{lowering.weight_format} weights")
    if any_int8_products(lowering):
        facts.append(f"int8 products as {exact_int8_products()}")
    return ", ".join(facts)


def _opened(
    bundle: Bundle,
    signatures: Sequence[GraphSignature],
    open_graph: Callable[[GraphSignature], "_Graph"],
) -> list["_Graph"]:
    """The graphs of `signatures`, in that order; several are opened at a time.

    ONNX Runtime packs a graph's weights for this CPU on the thread that opens it, which is most of
    the time (1.2 of 1.5 s on 1b) and is never skipped: it compares weights that it saved packed
    with the freshly packed ones. The largest graph is first: as the last it would be alone.
    """
    session_options()  # creates what sessions share before several threads ask for it

    def size_bytes(signature: GraphSignature) -> int:
        return sum(bundle.manifest.files[file].size_bytes for file in signature.files)

    largest_first = sorted(signatures, key=size_bytes, reverse=True)
    with ThreadPoolExecutor(min(num_threads(), MOST_OPENED)) as pool:
        opened = pool.map(open_graph, largest_first)
        graphs = {each.name: graph for each, graph in zip(largest_first, opened, strict=True)}
    return [graphs[each.name] for each in signatures]


class _Graph:
    """One session, checked against its signature."""

    def __init__(
        self, path: Path, signature: GraphSignature, form: WeightForm | None, clock: GraphClock
    ) -> None:
        self._clock = clock
        self._name = signature.name
        name = native_path(path)
        options = graph_session_options(form)
        # Memory patterns are kept per shape: as the past grows, that is one per step, without end.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # errors are raised, and would be printed as well
        try:
            self._session = onnxruntime.InferenceSession(name, options, providers=[PROVIDER])
        except Exception as exc:  # onnxruntime raises bare pybind exceptions of many types
            raise BackendError(
                f"onnxruntime cannot load {path}: {exc}; export the checkpoint again"
            ) from exc
        found = self._session.get_providers()[0]
        if found != PROVIDER:
            raise BackendError(f"{path.name} runs on {found}, wanted {PROVIDER}")
        return_freed_memory()
        self._check_signature(path, signature)

    def bindings(self) -> "_Bindings":
        return _Bindings(self._session, self._clock, self._name)

    def _check_signature(self, path: Path, signature: GraphSignature) -> None:
        """With other dims than the signature's a graph would access memory out of bounds."""
        for values, specs in (
            (self._session.get_inputs(), signature.inputs),
            (self._session.get_outputs(), signature.outputs),
        ):
            found = names_dtypes_dims(values)
            wanted = {(spec.name, spec.dtype, spec.dims) for spec in specs}
            if found != wanted:
                raise BackendError(
                    f"{path} has {sorted(found - wanted)}, the bundle's config.json wants "
                    f"{sorted(wanted - found)}; export the checkpoint again"
                )


class _Bindings:
    """A session's inputs and outputs; bound arrays must stay alive and contiguous."""

    def __init__(self, session: onnxruntime.InferenceSession, clock: GraphClock, name: str) -> None:
        self._session = session
        self._clock = clock
        self._name = name
        self._binding = session.io_binding()

    def bind_input(self, name: str, array: Array) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def bind_output(self, name: str, array: Array) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        started = time.perf_counter()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as exc:  # onnxruntime raises bare pybind exceptions of many types
            raise BackendError(
                f"{self._name} does not run: {exc}; if memory is short, take a smaller --window or "
                "--frames-per-step"
            ) from exc
        self._clock.seconds += time.perf_counter() - started
