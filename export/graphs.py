"""The modules that are traced into ONNX graphs: the reference's computation, written for export.

They hold no weights of their own: `export.trace` passes weights as graph inputs under the
checkpoint's tensor names, so that nothing is folded, merged or renamed and one traced topology
serves every layer of its kind. Linear weights are [in, out], multiplied without a Transpose.

One layer class, with one attention module per dialect (`targets`): `DeltaAttention` of plain ops
and `InPlaceAttention` of TensorScatter and Attention. In half precision, norms, rotation, softmax
and router compute in float32 between explicit casts, because strongly typed compilers take every
dtype from the graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mod_edge.config import ModelConfig, TextConfig
from mod_edge.model.dtypes import widened
from mod_edge.model.layers import RMSNorm
from mod_edge.model.routing import uniform_tokens
from mod_edge.model.vision import FrameEncoder
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.targets import Lowering

# Below every real score, yet finite: a row whose whole past is masked must not become NaN.
MASKED_SCORE = -1e9
CACHE_OPS_OPSET = 24  # TensorScatter is new in it


class GraphLinear(nn.Module):
    """A linear layer with its weight as [in, out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        product = hidden @ self.weight
        return product if self.bias is None else product + self.bias


class GraphLayerNorm(nn.LayerNorm):
    """A LayerNorm that computes in at least float32."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(widened(hidden)).to(hidden.dtype)


class GraphRMSNorm(RMSNorm):
    """The reference's norm with a division, the form that ONNX Runtime fuses into one kernel."""

    def forward(self, hidden: Tensor) -> Tensor:
        wide = widened(hidden)
        size = torch.sqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide / size * self.weight).to(hidden.dtype)


def _head_norm(config: TextConfig) -> nn.Module:
    return GraphRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`states` (..., E) rotated by angles whose cos and sin are (..., E/2), in their dtype."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class GraphAttention(nn.Module):
    """Projections, norms and RoPE of grouped-query attention, the same in both dialects."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.num_key_value_heads = config.num_key_value_heads
        width = self.num_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        has_bias = config.attention_bias
        self.q_proj = GraphLinear(config.hidden_size, width, bias=has_bias)
        self.k_proj = GraphLinear(config.hidden_size, kv_width, bias=has_bias)
        self.v_proj = GraphLinear(config.hidden_size, kv_width, bias=has_bias)
        self.o_proj = GraphLinear(width, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = (_head_norm(config) for _ in range(2))

    def project(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (R, H, E) rotated and scaled, key (R, G, E) rotated, value (R, G, E)."""
        query = self.q_proj(hidden).unflatten(-1, (self.num_heads, self.head_dim))
        key = self.k_proj(hidden).unflatten(-1, (self.num_key_value_heads, self.head_dim))
        value = self.v_proj(hidden).unflatten(-1, (self.num_key_value_heads, self.head_dim))
        cos, sin = cos[:, None], sin[:, None]  # over heads
        # Scaled here, on the few new rows: TensorRT would scale the whole cached key instead.
        query = rotated(self.q_norm(widened(query)), cos, sin) * self.head_dim**-0.5
        key = rotated(self.k_norm(widened(key)), cos, sin)
        return query.to(hidden.dtype), key.to(hidden.dtype), value


class DeltaAttention(GraphAttention):
    """Attention over the past and over the new rows, each on its own, then mixed.

    A softmax over both would have to copy all scores into one tensor and their weights out again.
    """

    def __init__(self, config: TextConfig, *, masks_unused_rows: bool) -> None:
        super().__init__(config)
        self.masks_unused_rows = masks_unused_rows

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        past_length: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention output (R, D), new keys rotated and new values, both (R, G, E)."""
        query, new_key, new_value = self.project(hidden, cos, sin)
        groups = self.num_key_value_heads
        # Query heads of a group become rows, so that K and V are never repeated: (G, H/G*R, E).
        grouped = query.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        past_scores = widened(grouped @ past_key.permute(1, 2, 0))  # (G, H/G*R, S)
        new_scores = widened(grouped @ new_key.permute(1, 2, 0))  # (G, H/G*R, R)
        if self.masks_unused_rows:
            past_scores = torch.where(
                torch.arange(past_key.shape[0]) < past_length, past_scores, MASKED_SCORE
            )
        group_size = self.num_heads // groups
        rows = torch.arange(hidden.shape[0])
        new_scores = torch.where(
            rows <= rows[:, None], new_scores.unflatten(1, (group_size, -1)), MASKED_SCORE
        ).flatten(1, 2)
        past_weights, new_weights = past_scores.softmax(-1), new_scores.softmax(-1)
        past_share = _share_logit(past_scores, past_weights, new_scores, new_weights).sigmoid()
        if not self.masks_unused_rows:  # then no past is bound as one row of zeros
            past_share = torch.where(past_length > 0, past_share, 0.0)
        past_mixed = past_weights.to(hidden.dtype) @ past_value.permute(1, 0, 2)
        new_mixed = new_weights.to(hidden.dtype) @ new_value.permute(1, 0, 2)
        mixed = new_mixed + past_share.to(hidden.dtype) * (past_mixed - new_mixed)  # (G, H/G*R, E)
        mixed = mixed.unflatten(1, (group_size, -1)).permute(2, 0, 1, 3).flatten(1)
        return self.o_proj(mixed), new_key, new_value


def _share_logit(
    past_scores: Tensor, past_weights: Tensor, new_scores: Tensor, new_weights: Tensor
) -> Tensor:
    """The logit (G, rows, 1) of the past's share of the attention of each row.

    The logarithm of both blocks' sums of exponentials, one over the other. A sum is found without
    exponentials, from a block's largest score and its weight, which is at least 1/S.
    """
    scores = past_scores.amax(-1, keepdim=True) - new_scores.amax(-1, keepdim=True)
    weights = new_weights.amax(-1, keepdim=True) / past_weights.amax(-1, keepdim=True)
    return scores + weights.log()


class InPlaceAttention(GraphAttention):
    """Attention over a cache of fixed size into which the new rows are written first.

    ONNX TensorScatter-24 and Attention-24, the pair that TensorRT 10.15 and later compiles into its
    KV cache update and fused attention. The mask is explicit: TensorRT silently reads `is_causal`
    as top-left and ignores `nonpad_kv_seqlen`.
    """

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        write_index: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention output (R, D), and the whole caches (1, G, S, E) with R rows written."""
        query, key, value = (
            states.transpose(0, 1)[None] for states in self.project(hidden, cos, sin)
        )  # (1, heads, R, E)
        present_key = _written(past_key, key, write_index)
        present_value = _written(past_value, value, write_index)
        last_seen = write_index + torch.arange(hidden.shape[0])  # (R,)
        is_seen = torch.arange(past_key.shape[2]) <= last_seen[:, None]  # (R, S)
        mixed = torch.onnx.ops.symbolic(
            "Attention",
            (query, present_key, present_value, is_seen[None, None]),
            {"scale": 1.0},
            dtype=query.dtype,
            shape=query.shape,
            version=CACHE_OPS_OPSET,
        )
        return self.o_proj(mixed[0].transpose(0, 1).flatten(1)), present_key, present_value


def _written(cache: Tensor, rows: Tensor, write_index: Tensor) -> Tensor:
    written: Tensor = torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, rows, write_index),
        {"axis": -2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=CACHE_OPS_OPSET,
    )
    return written


def _attention(config: TextConfig, lowering: Lowering) -> GraphAttention:
    if lowering.dialect == "in_place":
        return InPlaceAttention(config)
    return DeltaAttention(config, masks_unused_rows=lowering.binds_unused_rows)


class GraphMLP(nn.Module):
    """SwiGLU with [in, out] weights."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = GraphLinear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = GraphLinear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = GraphLinear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class DenseLayerGraph(nn.Module):
    """A decoder layer that computes every row; inputs and outputs as in `signature`."""

    def __init__(self, config: ModelConfig, lowering: Lowering) -> None:
        super().__init__()
        text = config.text_config
        self.self_attn = _attention(text, lowering)
        self.mlp = GraphMLP(text)
        self.input_layernorm = GraphRMSNorm(text.hidden_size, text.rms_norm_eps)
        self.post_attention_layernorm = GraphRMSNorm(text.hidden_size, text.rms_norm_eps)

    def branch(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, *past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """f(x) of x + f(x) for rows (R, D), and the attention's key and value for the cache."""
        attention, key, value = self.self_attn(self.input_layernorm(hidden), cos, sin, *past)
        mlp = self.mlp(self.post_attention_layernorm(hidden + attention))
        return attention + mlp, key, value

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        branch, key, value = self.branch(hidden[0], cos[0], sin[0], *past)
        return hidden + branch[None], key, value


class MoDLayerGraph(DenseLayerGraph):
    """A decoder layer that computes text and K tokens of each frame: TopK, Gather, block, Scatter.

    Skipped tokens pass unchanged and have no key or value.
    """

    def __init__(self, config: ModelConfig, lowering: Lowering) -> None:
        super().__init__(config, lowering)
        assert config.mod_config is not None
        self.frame_num_tokens, self.num_kept = config.frame_num_tokens, config.num_kept
        self.scales_whole_output = config.mod_config.router_scaling == "full"
        size = config.text_config.hidden_size
        self.router = GraphLinear(size, 1, bias=True) if config.has_router else None

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, *past_and_routing: Tensor
    ) -> tuple[Tensor, ...]:
        *past, text_index, frame_index, row_order = past_and_routing
        states = hidden[0]  # (T, D)
        kept, row_weights = self.select(states, text_index, frame_index, row_order)
        kept_rows = frame_index.gather(1, kept).flatten()  # (F*K,) row numbers into T
        rows = torch.cat([text_index, kept_rows]).index_select(0, row_order)  # (R,) in time order
        # index_select exports as Gather; indexing with a tensor would give the slower GatherND.
        inputs = states.index_select(0, rows)
        angles = (cos[0].index_select(0, rows), sin[0].index_select(0, rows))
        branch, key, value = self.branch(inputs, *angles, *past)
        if row_weights is None:
            computed = inputs + branch
        elif self.scales_whole_output:
            computed = row_weights * widened(inputs + branch)
        else:
            computed = widened(inputs) + row_weights * widened(branch)
        new_hidden = states.index_put((rows,), computed.to(states.dtype))
        return new_hidden[None], key, value, kept

    def select(
        self, states: Tensor, text_index: Tensor, frame_index: Tensor, row_order: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Kept positions (F, K), rising, and the weight (R, 1) of each computed row, if any."""
        if self.router is None:
            columns = torch.tensor(uniform_tokens(self.frame_num_tokens, self.num_kept))
            return columns.expand(frame_index.shape[0], -1).contiguous(), None
        all_logits = self.router(widened(states))[:, 0]  # (T,), as fast as gathering frames first
        router_logits = all_logits.index_select(0, frame_index.flatten())
        router_logits = router_logits.unflatten(0, (-1, self.frame_num_tokens))  # (F, N)
        # TopK returns the heaviest first; the positions are sorted back into time order.
        # By logits, not weights: many sigmoids round to 1, and the order of ties is undefined.
        # A frame of zeros is appended and dropped again: TopK over no frames crashes
        # onnxruntime 1.23, the last for Python 3.10, with a floating point exception.
        padded = torch.cat([router_logits, router_logits.new_zeros(1, self.frame_num_tokens)])
        kept = padded.topk(self.num_kept, dim=1).indices.sort(dim=1).values[:-1]
        kept_weights = router_logits.gather(1, kept).flatten().sigmoid()
        weights = torch.cat([torch.ones_like(text_index, dtype=kept_weights.dtype), kept_weights])
        return kept, weights.index_select(0, row_order)[:, None]


class HeadGraph(nn.Module):
    """The last norm and the language-model head, for any number of rows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.norm = GraphRMSNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = GraphLinear(text.hidden_size, text.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return widened(self.lm_head(self.norm(hidden)))


class RebaseGraph(nn.Module):
    """The sink's keys, all rows rotated further by the same angles."""

    def forward(self, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotated(widened(key), cos, sin).to(key.dtype)


def vision_graph(config: ModelConfig) -> nn.Module:
    """The reference's frame encoder with [in, out] linear layers and norms in float32."""
    encoder = FrameEncoder(config)
    for path, module in list(encoder.named_modules()):
        if isinstance(module, nn.Linear):
            linear = GraphLinear(module.in_features, module.out_features, module.bias is not None)
            encoder.set_submodule(path, linear)
        elif isinstance(module, nn.LayerNorm):
            shape = list(module.normalized_shape)
            encoder.set_submodule(path, GraphLayerNorm(shape, eps=module.eps))
    return encoder


MODULES: dict[GraphKind, Callable[[ModelConfig, Lowering], nn.Module]] = {
    VISION: lambda config, _lowering: vision_graph(config),
    DENSE: DenseLayerGraph,
    MOD: MoDLayerGraph,
    HEAD: lambda config, _lowering: HeadGraph(config),
    REBASE: lambda _config, _lowering: RebaseGraph(),
}


def graph_module(config: ModelConfig, kind: GraphKind, lowering: Lowering) -> nn.Module:
    """The module that one kind of graph is traced from, without weights (on the meta device).

    Weights have the lowering's dtype, except for those of norms and router, which are float32.
    """
    with torch.device("meta"):
        module = MODULES[kind](config, lowering)
    module.to(getattr(torch, lowering.dtype))
    for path, part in module.named_modules():
        if isinstance(part, RMSNorm | nn.LayerNorm) or path == "router":
            part.to(torch.float32)
    return module.eval()


def linear_weight_names(graph: nn.Module) -> frozenset[str]:
    """Names of the weights that the graph holds as [in, out], transposed from the checkpoint."""
    return frozenset(
        f"{path}.weight"
        for path, module in graph.named_modules()
        if isinstance(module, GraphLinear)
    )
