"""ONNX Runtime on the CPU, one session a graph, everything bound to buffers made at the start.

The cache is never copied: a step of `delta` graphs binds views of it (past in, new rows out),
`in_place` graphs get it whole, as input and output at one address, once for all steps.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mod_edge.bundle.manifest import EMBEDDING_FILE
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError
from mod_edge.native.onnx_session import names_dtypes_dims, session_options
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.signature import (
    GraphSignature,
    head_signature,
    layer_signature,
    vision_signature,
)
from mod_edge.plan.targets import Lowering
from mod_edge.runtime.cpu.kv_cache import KvCache
from mod_edge.runtime.embedding import read_embedding
from mod_edge.runtime.runner import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    Runner,
    UInt8Array,
    require_room,
)

PROVIDER = "CPUExecutionProvider"


class OnnxRunner(Runner):
    """Runs a bundle's graphs of either dialect."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        lowering: Lowering,
        capacity: Rows,
        *,
        max_step_tokens: int,
        frames_per_step: int,
    ) -> None:
        """Load all graphs and allocate all buffers.

        Args:
            folder: a checked bundle with every layer.
            config: its config.
            lowering: what its graphs were made for; not bf16, which this provider does not know.
            capacity: rows of the cache; the lowering's own where it has one.
            max_step_tokens: T at most, the step's frames included.
            frames_per_step: F at most, in a step and in `encode`.

        Raises:
            BackendError: a graph does not load, not on the provider it was meant for, or is not
                the config's; likewise the embedding table; or the precision is bf16.
            CacheError: there is not so much memory.
        """
        if lowering.precision == "bf16":
            raise BackendError(
                f"{folder} is in bf16, which onnxruntime does not compute on a CPU; export with "
                "--precision fp16 or fp32 to run it here"
            )
        text, dtype = config.text_config, lowering.dtype
        self.name = f"onnx (onnxruntime {onnxruntime.__version__}, CPU)"
        self._config = config
        self._max_step_tokens = max_step_tokens
        self._is_in_place = lowering.dialect == "in_place"
        self._cache = KvCache(config, lowering, lowering.capacity or capacity)
        self._embedding = read_embedding(folder / EMBEDDING_FILE, config, dtype)
        self._frequencies = inverse_frequencies(text)
        self._angles = np.empty((max_step_tokens, text.head_dim // 2))
        self._cos = np.empty(self._angles.shape, np.float32)
        self._sin = np.empty(self._angles.shape, np.float32)
        # Layers read one and write the other in turn.
        self._hidden = [np.empty((max_step_tokens, text.hidden_size), dtype) for _ in range(2)]
        self._past_length = {is_mod: np.zeros(1, np.int64) for is_mod in (False, True)}
        # The first step has no past, but a graph cannot bind zero rows: it gets this masked one.
        self._no_past = np.zeros((1, text.num_key_value_heads, text.head_dim), dtype)
        self._kept = {
            index: np.zeros((frames_per_step, config.num_kept), np.int64)
            for index in config.mod_layers
        }
        self._frame_embeds = np.empty(
            (frames_per_step, config.frame_num_tokens, text.hidden_size), dtype
        )
        self._head_rows = np.empty((frames_per_step, text.hidden_size), dtype)
        self._logits = np.empty((frames_per_step, text.vocab_size), np.float32)
        self._vision = _Graph(folder, vision_signature(config, lowering))
        self._layers = [
            _Graph(folder, layer_signature(config, index, lowering))
            for index in range(text.num_hidden_layers)
        ]
        self._head = _Graph(folder, head_signature(config, lowering))
        self._layout: StepLayout | None = None
        if self._is_in_place:
            self._bind_whole_cache()

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        num_frames = len(frames)
        embeds = self._frame_embeds[:num_frames]
        self._vision.bind_input("frames", frames)
        self._vision.bind_output("frame_embeds", embeds)
        self._vision.run()
        return embeds

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        added = require_room(layout, past, self._cache.capacity, self._max_step_tokens)
        hidden = self._hidden[0]
        hidden[layout.text_index] = self._embedding[list(token_ids)]
        if frame_embeds is not None:
            hidden[layout.frame_index] = np.asarray(frame_embeds)
        self._write_angles(layout.num_tokens, position)
        if layout is not self._layout:
            self._bind_layout(layout)
        self._past_length[False][0], self._past_length[True][0] = past
        if not self._is_in_place:
            self._bind_views(past, added)
        for graph in self._layers:
            graph.run()

    def logits(self, rows: Sequence[int]) -> Float32Array:
        num_rows = len(rows)
        final = self._hidden[len(self._layers) % 2]
        inputs, logits = self._head_rows[:num_rows], self._logits[:num_rows]
        np.take(final, rows, axis=0, out=inputs)
        self._head.bind_input("hidden", inputs[None])
        self._head.bind_output("logits", logits[None])
        self._head.run()
        return logits

    def evict(self, eviction: Eviction) -> None:
        self._cache.evict(eviction)

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        num_frames = self._layout.num_frames if self._layout else 0
        return {index: kept[:num_frames] for index, kept in self._kept.items()}

    def _bind_whole_cache(self) -> None:
        for graph, buffers in zip(self._layers, self._cache.layers, strict=True):
            for name, buffer in (("key", buffers.key), ("value", buffers.value)):
                # One address for both: else ONNX Runtime copies the whole cache in every step.
                graph.bind_input(f"past_{name}", buffer)
                graph.bind_output(f"present_{name}", buffer)

    def _bind_views(self, past: Rows, added: Rows) -> None:
        for graph, buffers in zip(self._layers, self._cache.layers, strict=True):
            num_past = past.of(buffers.is_mod)
            num_new = added.of(buffers.is_mod)
            for name, buffer in (("key", buffers.key), ("value", buffers.value)):
                graph.bind_input(f"past_{name}", buffer[:num_past] if num_past else self._no_past)
                graph.bind_output(f"new_{name}", buffer[num_past : num_past + num_new])

    def _write_angles(self, num_tokens: int, position: int) -> None:
        """Cos and sin of the step's absolute positions, by way of float64."""
        positions = np.arange(position, position + num_tokens, dtype=np.float64)
        angles = self._angles[:num_tokens]
        np.multiply(positions[:, None], self._frequencies, out=angles)
        np.cos(angles, out=self._cos[:num_tokens], casting="same_kind")
        np.sin(angles, out=self._sin[:num_tokens], casting="same_kind")

    def _bind_layout(self, layout: StepLayout) -> None:
        """Bind all that only depends on the step's shape; steps of one shape reuse it."""
        tokens = slice(0, layout.num_tokens)
        for index, graph in enumerate(self._layers):
            is_mod = index in self._kept
            graph.bind_input("hidden", self._hidden[index % 2][None, tokens])
            graph.bind_input("cos", self._cos[None, tokens])
            graph.bind_input("sin", self._sin[None, tokens])
            count = "write_index" if self._is_in_place else "past_length"
            graph.bind_input(count, self._past_length[is_mod])
            graph.bind_output("new_hidden", self._hidden[(index + 1) % 2][None, tokens])
            if is_mod:
                graph.bind_input("text_index", layout.text_index)
                graph.bind_input("frame_index", layout.frame_index)
                graph.bind_input("row_order", layout.row_order)
                graph.bind_output("kept", self._kept[index][: layout.num_frames])
        # The bindings hold addresses only: this reference keeps the layout's arrays alive.
        self._layout = layout


class _Graph:
    """One session with its bindings; bound arrays must stay alive and contiguous."""

    def __init__(self, folder: Path, signature: GraphSignature) -> None:
        path = folder / signature.file
        options = session_options()
        # Its patterns are kept for every shape seen: with a past that grows, one a step, for ever.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what fails is raised, and would be printed besides
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as exc:  # onnxruntime raises bare pybind exceptions of many types
            raise BackendError(
                f"onnxruntime cannot load {path}: {exc}; export the checkpoint again"
            ) from exc
        found = self._session.get_providers()[0]
        if found != PROVIDER:
            raise BackendError(f"{path.name} runs on {found}, wanted {PROVIDER}")
        self._check_signature(path, signature)
        self._binding = self._session.io_binding()

    def bind_input(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def bind_output(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _check_signature(self, path: Path, signature: GraphSignature) -> None:
        """Addresses are bound by the signature: a graph of other dims would read or write amiss."""
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
