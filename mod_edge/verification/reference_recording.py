"""Records one stream through the PyTorch reference: inputs and outputs of every graph.

Positions are the stream's own, as in the runtime: the reference lowers its positions at every roll,
so the number of evicted tokens is added back to each recorded step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mod_edge.model.layers import LayerCache, MoDDecoderLayer
from mod_edge.model.video_llm import VideoLLM
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    StreamState,
    UInt8Array,
)
from mod_edge.verification.recording import (
    AFTER_ROLL,
    Call,
    EncodeCall,
    EvictCall,
    ReadCall,
    StepCall,
    step_kind,
)


@dataclass(frozen=True)
class LayerState:
    """A layer's input in a step: hidden (T, D), and its past at the stream's positions."""

    hidden: Tensor
    past: LayerCache


@dataclass(frozen=True)
class DecoderStep:
    """One step through all layers, from stream position `position` on."""

    layout: StepLayout
    position: int
    states: Mapping[int, LayerState]


@dataclass(frozen=True)
class SinkState:
    """A sink's keys (S, G, E) as first written, at `positions`, and the tokens evicted so far."""

    key: Tensor
    positions: Tensor
    num_evicted: int


@dataclass(frozen=True)
class NumberedEmbeds:
    """Frame embeddings with the indices of their frames among those encoded together."""

    embeds: Float32Array
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, frames: slice) -> "NumberedEmbeds":
        return NumberedEmbeds(self.embeds[frames], self.numbers[frames])


class Recorder(StreamState):
    """The reference as a session's stream, which records the latest step of every kind.

    Attributes:
        calls: every call, in order.
        frames: by kind, the vision graph's input.
        steps: by kind, the layers' input.
        head_rows: by kind, the head's input, (rows, D).
        sinks: by kind of layer, the rebase graph's input.
    """

    def __init__(
        self, model: VideoLLM, selections: Sequence[Mapping[int, Int64Array]] = ()
    ) -> None:
        """Record `model`.

        Args:
            model: has hooks registered until `close`.
            selections: step by step and by MoD layer, (F, K) to use instead of the reference's own
                choice; empty for its own.
        """
        from mod_edge.runtime.cpu.torch_model import TorchModel

        self._stream = TorchModel(model).open_stream()
        self.name = self._stream.name
        self.calls: list[Call] = []
        self.frames: dict[str, UInt8Array] = {}
        self.steps: dict[str, DecoderStep] = {}
        self.head_rows: dict[str, Tensor] = {}
        self.sinks: dict[str, SinkState] = {}
        self._mod_layers = frozenset(model.config.mod_layers)
        self._selections = iter(selections)
        self._forced: Mapping[int, Int64Array] = {}
        self._num_evicted = 0
        self._has_just_rolled = False
        self._kind = ""
        self._states: dict[int, LayerState] = {}
        self._caches: dict[int, LayerCache] = {}
        self._router_logits: dict[int, Float32Array] = {}
        self._hooks = [
            layer.register_forward_pre_hook(partial(self._see_layer, index))
            for index, layer in enumerate(model.model.layers)
        ]
        self._hooks.append(model.model.norm.register_forward_pre_hook(self._see_head))

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def encode(self, frames: UInt8Array) -> "NumberedEmbeds":
        """See `StreamState`."""
        fed = frames.copy()  # the session reuses the buffer for the next frames
        self.calls.append(EncodeCall(fed))
        self.frames["one frame"] = fed[:1]
        if len(fed) > 1:
            self.frames["many frames"] = fed
        return NumberedEmbeds(self._stream.encode(fed), range(len(fed)))

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        """See `StreamState`."""
        self._kind = step_kind(layout, past) + AFTER_ROLL * self._has_just_rolled
        self._has_just_rolled = False
        self._states, self._router_logits = {}, {}
        self._forced = next(self._selections, {})
        assert frame_embeds is None or isinstance(frame_embeds, NumberedEmbeds), "from encode()"
        embeds = frame_embeds and frame_embeds.embeds
        self._stream.step(layout, token_ids, embeds, position=position, past=past)
        self.steps[self._kind] = DecoderStep(layout, position, self._states)
        self.calls.append(
            StepCall(
                pieces=layout.pieces,
                token_ids=tuple(token_ids),
                first_frame=frame_embeds.numbers[0] if frame_embeds else 0,
                position=position,
                past=past,
                kept=dict(self._stream.kept),
                router_logits=self._router_logits,
            )
        )

    def logits(self, rows: Sequence[int]) -> Float32Array:
        """See `StreamState`."""
        logits = self._stream.logits(rows)
        self.calls.append(ReadCall(tuple(rows), logits))
        return logits

    def evict(self, eviction: Eviction) -> None:
        """See `StreamState`."""
        self._stream.evict(eviction)
        self.calls.append(EvictCall(eviction))
        self._num_evicted = eviction.num_evicted
        self._has_just_rolled = True
        for index, cache in self._caches.items():
            is_mod = index in self._mod_layers
            sink = eviction.sink.of(is_mod)
            positions = cache.positions[:sink].clone()
            self.sinks["MoD layers" if is_mod else "dense layers"] = SinkState(
                cache.key[:sink], positions, eviction.num_evicted
            )

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        """See `StreamState`."""
        return self._stream.kept

    def _see_layer(
        self, index: int, layer: nn.Module, arguments: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        hidden, layout, _, cache = arguments
        positions = cache.positions + self._num_evicted
        self._caches[index] = cache
        self._states[index] = LayerState(hidden, LayerCache(cache.key, cache.value, positions))
        if isinstance(layer, MoDDecoderLayer) and layer.router is not None:
            frame_index = torch.tensor(layout.frame_index)
            self._router_logits[index] = layer.router(hidden[frame_index])[..., 0].numpy()
        forced = self._forced.get(index)
        return arguments if forced is None else (*arguments, torch.tensor(forced))

    def _see_head(self, _norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.head_rows[self._kind] = arguments[0]
