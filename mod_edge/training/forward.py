"""The decoder's forward pass for training: a batch of whole streams, on the reference's parameters.

`layers.py` runs one stream step by step and favours clarity over speed. Here streams of unequal
length are batched and padded on the right, where the causal mask hides the padding. A MoD layer
computes a compacted batch: each stream's text and kept rows in time order, plus padding rows, whose
states do not change. Tests compare every policy's logits with the reference.

Matrix products run in `dtype`; norms, rotation, router and residual stream stay in the parameters'
dtype (float32, or float64 in tests).
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, pad, silu

from mod_edge.model.layers import Attention, DecoderLayer, MoDDecoderLayer, RMSNorm
from mod_edge.model.routing import keep_top_tokens, uniform_tokens
from mod_edge.model.video_llm import VideoLLM
from mod_edge.training.attention import causal_attention
from mod_edge.training.batches import Batch, round_up
from mod_edge.training.fused_ops import normalized, rotated


@dataclass(frozen=True)
class Rotation:
    """Cos and sin for `rotated`: (1 or B, rows, 1, E)."""

    cos: Tensor
    sin: Tensor

    def at(self, rows: Tensor) -> "Rotation":
        """The rotation of rows (B, R), selected from that of all rows (1, T, 1, E)."""
        return Rotation(self.cos[0][rows], self.sin[0][rows])


@dataclass(frozen=True)
class Compaction:
    """The rows that a MoD layer computes, stream by stream, in time order.

    Attributes:
        rows: (B*R,) int64, indices into all B*T rows.
        is_computed: (B, R, 1) bool; False for padding rows, which keep their states.
        rotation: of these rows, at their original positions.
    """

    rows: Tensor
    is_computed: Tensor
    rotation: Rotation


class BatchedDecoder:
    """A model's decoder for batches; it has no parameters of its own."""

    def __init__(
        self, model: VideoLLM, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> None:
        """A decoder on the parameters of `model`, with matrix products in `dtype`.

        `random` selection uses `generator`, or torch's default if that is None.
        """
        self._model = model
        self._layers = [cast(DecoderLayer, layer) for layer in model.model.layers]
        self._dtype = dtype
        self._generator = generator
        self._chooses_by_layer = any(
            isinstance(layer, MoDDecoderLayer)
            and layer.num_kept > 0
            and layer.selection != "uniform"
            for layer in self._layers
        )

    def logits(self, batch: Batch) -> Tensor:
        """(L, V) in at least float32, at the batch's labelled rows."""
        return self.logits_of(self.hidden_states(batch)[-1], batch)

    def logits_of(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The same logits, from the last of the batch's `hidden_states`."""
        num_labels = len(batch.label_rows)
        rows = pad(batch.label_rows, (0, round_up(num_labels) - num_labels))
        states = hidden.flatten(0, 1).index_select(0, rows)
        logits = self._normed_product(states, self._model.model.norm, self._model.lm_head)
        return logits[:num_labels].to(torch.promote_types(self._dtype, torch.float32))

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """(B, T, D) before the first layer and after each layer; undefined in padding."""
        hidden = self._embeds(batch)
        hidden_states = [hidden]
        rotation = self._rotation(batch.num_positions, hidden)
        compaction: Compaction | None = None
        for layer in self._layers:
            if not isinstance(layer, MoDDecoderLayer):
                hidden = self._layer(layer, hidden, rotation)
                hidden_states.append(hidden)
                continue
            flat = hidden.flatten(0, 1)
            router_logits = self._router_logits(layer, flat, batch)
            if compaction is None or self._chooses_by_layer:
                compaction = compact(batch, self._choose(layer, router_logits, batch), rotation)
            weights = None if router_logits is None else token_weights(router_logits, batch)
            hidden = self._mod_layer(layer, flat, compaction, weights).view_as(hidden)
            hidden_states.append(hidden)
        return hidden_states

    def query_and_key(self, hidden: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Rotated queries (B, T, H, E) and keys (B, T, G, E) of a layer, in `dtype`.

        Args:
            hidden: (B, T, D) before the layer.
            number: the index of a dense layer.
        """
        layer = self._layers[number]
        attention, norm = layer.self_attn, layer.input_layernorm
        states = self._normed_product(hidden, norm, attention.q_proj, attention.k_proj)
        rotation = self._rotation(hidden.shape[1], hidden)
        turned = turned_heads(attention, states.unflatten(-1, (-1, attention.head_dim)), rotation)
        query, key = turned.split((attention.num_heads, attention.num_key_value_heads), dim=2)
        return query, key

    def _embeds(self, batch: Batch) -> Tensor:
        """(B, T, D): text rows from the embedding table, frame rows from the connector."""
        text = self._model.model.embed_tokens(batch.token_ids)
        into, out = (cast(nn.Linear, self._model.connector[number]) for number in (0, 2))
        frames = self._product(gelu(self._product(batch.features, into)), out)  # (F, N, D)
        rows = frames.flatten(0, 1).to(text.dtype)
        return text.flatten(0, 1).index_copy(0, batch.frame_index.flatten(), rows).view_as(text)

    def _rotation(self, num_positions: int, hidden: Tensor) -> Rotation:
        frequencies = self._layers[0].self_attn.frequencies
        angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
        cos, sin = angles.cos().to(hidden), angles.sin().to(hidden)  # (T, E/2)
        return Rotation(
            torch.cat([cos, cos], dim=-1)[None, :, None],
            torch.cat([-sin, sin], dim=-1)[None, :, None],
        )

    def _layer(self, layer: DecoderLayer, hidden: Tensor, rotation: Rotation) -> Tensor:
        """X + f(x), (B, rows, D); each stream attends only to itself."""
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        states = self._normed_product(hidden, layer.input_layernorm, *projections)
        hidden = hidden + self._product(self._mixed(attention, states, rotation), attention.o_proj)
        states = self._normed_product(
            hidden, layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj
        )
        gate, up = states.chunk(2, dim=-1)
        return hidden + self._product(silu(gate) * up, mlp.down_proj)

    def _mixed(self, attention: Attention, states: Tensor, rotation: Rotation) -> Tensor:
        """(B, rows, H*E), attention over queries, keys and values (B, rows, (H + 2G)*E)."""
        num_heads, num_key_heads = attention.num_heads, attention.num_key_value_heads
        states = states.unflatten(-1, (-1, attention.head_dim))
        turned, value = states.split((num_heads + num_key_heads, num_key_heads), dim=2)
        turned = turned_heads(attention, turned, rotation)
        query, key = turned.split((num_heads, num_key_heads), dim=2)
        return causal_attention(query, key, value).flatten(2)

    def _mod_layer(
        self,
        layer: MoDDecoderLayer,
        flat: Tensor,
        compaction: Compaction,
        weights: Tensor | None,
    ) -> Tensor:
        """New states (B*T, D); `weights` (B*T, 1) scale the computed rows, None scales nothing."""
        shape = compaction.is_computed.shape
        inputs = flat.index_select(0, compaction.rows).unflatten(0, shape[:2])
        computed = self._layer(layer, inputs, compaction.rotation)
        if weights is not None:
            scale = weights.index_select(0, compaction.rows).view(shape)
            if layer.router_scaling == "full":
                computed = scale * computed
            else:  # x + w*f(x)
                computed = torch.lerp(inputs, computed, scale)
        states = torch.where(compaction.is_computed, computed, inputs)
        return flat.index_copy(0, compaction.rows, states.flatten(0, 1))

    def _router_logits(self, layer: MoDDecoderLayer, flat: Tensor, batch: Batch) -> Tensor | None:
        """(F, N); None without a router."""
        if layer.router is None:
            return None
        return linear(flat, layer.router.weight, layer.router.bias)[batch.frame_index, 0]

    def _choose(self, layer: MoDDecoderLayer, router_logits: Tensor | None, batch: Batch) -> Tensor:
        """(F, K) kept positions within each frame, rising."""
        num_frames, num_tokens = batch.frame_index.shape
        device = batch.frame_index.device
        if layer.num_kept == 0:
            return batch.frame_index[:, :0]
        if router_logits is not None:
            return keep_top_tokens(router_logits, layer.num_kept)
        if layer.selection == "random":
            drawn = torch.rand(num_frames, num_tokens, generator=self._generator, device=device)
            return keep_top_tokens(drawn, layer.num_kept)
        kept = torch.tensor(uniform_tokens(num_tokens, layer.num_kept), device=device)
        return kept.expand(num_frames, -1)

    def _normed_product(self, hidden: Tensor, norm: RMSNorm, *layers: nn.Linear) -> Tensor:
        """The outputs of `layers` for `norm`'s output, concatenated, in `dtype`."""
        weight = torch.cat([layer.weight for layer in layers]) * norm.weight
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers))
        bias = torch.cat(biases).to(self._dtype) if biases else None
        return linear(normalized(hidden, norm.eps, self._dtype), weight.to(self._dtype), bias)

    def _product(self, states: Tensor, layer: nn.Linear) -> Tensor:
        """The output of `layer`, in `dtype`."""
        bias = None if layer.bias is None else layer.bias.to(self._dtype)
        return linear(states.to(self._dtype), layer.weight.to(self._dtype), bias)


def turned_heads(attention: Attention, states: Tensor, rotation: Rotation) -> Tensor:
    """Queries and keys (B, rows, H + G, E) after the norms over E, if any, and the rotation."""
    q_norm, k_norm = attention.q_norm, attention.k_norm
    if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
        query_weight = q_norm.weight.expand(attention.num_heads, -1)
        key_weight = k_norm.weight.expand(attention.num_key_value_heads, -1)
        weight = torch.cat([query_weight, key_weight])  # (H + G, E)
        normed = normalized(states.to(weight.dtype), q_norm.eps, weight.dtype) * weight
        states = normed.to(states.dtype)
    return rotated(states, rotation.cos, rotation.sin)


def compact(batch: Batch, kept: Tensor, rotation: Rotation) -> Compaction:
    """The rows that a MoD layer computes if it keeps the tokens `kept` (F, K) of each frame."""
    is_computed = batch.is_text.clone()  # (B, T)
    is_computed.view(-1)[batch.frame_index.gather(1, kept).flatten()] = True
    num_rows = is_computed.sum(1, keepdim=True)  # (B, 1)
    order = is_computed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    order = order[:, : round_up(int(num_rows.max()))]  # (B, R)
    places = torch.arange(order.shape[1], device=order.device)
    first_rows = torch.arange(len(order), device=order.device) * batch.num_positions
    return Compaction(
        (order + first_rows[:, None]).flatten(),
        (places < num_rows)[:, :, None],
        rotation.at(order),
    )


def token_weights(router_logits: Tensor, batch: Batch) -> Tensor:
    """(B*T, 1): each frame token's weight, 1 for text."""
    weights = router_logits.new_ones(batch.is_text.numel())
    rows = batch.frame_index.flatten()
    return weights.index_copy(0, rows, router_logits.sigmoid().flatten())[:, None]
