"""The modules that are traced into ONNX graphs: twins of the reference, written for export.

They hold no weights of their own: `export.trace` passes weights as graph inputs under the
checkpoint's tensor names, so that nothing is folded, merged or renamed and one traced topology
serves every layer of its kind. Linear weights are [in, out], multiplied without a Transpose.

The `delta` dialect: a layer reads the past as token-major views and returns only the new rows, two
score blocks under one softmax, plain ops only.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mod_edge.config import ModelConfig, TextConfig
from mod_edge.layers import RMSNorm
from mod_edge.routing import uniform_tokens
from mod_edge.vision import FrameEncoder

# Below every real score, yet finite: a row whose whole past is masked must not become NaN.
MASKED_SCORE = -1e9


class GraphLinear(nn.Module):
    """A linear layer with its weight as [in, out]."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        product = hidden @ self.weight
        return product if self.bias is None else product + self.bias


class DeltaAttention(nn.Module):
    """Grouped-query attention over a masked past and the new rows, without joining the two."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_key_value_heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self.group_size = config.num_attention_heads // config.num_key_value_heads
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = GraphLinear(config.hidden_size, width, bias=False)
        self.k_proj = GraphLinear(config.hidden_size, kv_width, bias=False)
        self.v_proj = GraphLinear(config.hidden_size, kv_width, bias=False)
        self.o_proj = GraphLinear(width, config.hidden_size, bias=False)

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
        groups, size = self.num_key_value_heads, self.head_dim
        query = self._rotate(self.q_proj(hidden).unflatten(-1, (-1, size)), cos, sin)  # (R, H, E)
        new_key = self._rotate(self.k_proj(hidden).unflatten(-1, (groups, size)), cos, sin)
        new_value = self.v_proj(hidden).unflatten(-1, (groups, size))
        # Query heads of a group become rows, so that K and V are never repeated: (G, H/G*R, E).
        grouped = (query * size**-0.5).unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        past_scores = grouped @ past_key.permute(1, 2, 0)  # (G, H/G*R, S)
        new_scores = grouped @ new_key.permute(1, 2, 0)  # (G, H/G*R, R)
        past_scores = torch.where(
            torch.arange(past_key.shape[0]) < past_length, past_scores, MASKED_SCORE
        )
        rows = torch.arange(hidden.shape[0])
        new_scores = torch.where(
            rows <= rows[:, None], new_scores.unflatten(1, (self.group_size, -1)), MASKED_SCORE
        ).flatten(1, 2)
        weights = torch.softmax(torch.cat([past_scores, new_scores], dim=-1), dim=-1)
        past_weights = weights[..., : past_key.shape[0]]
        new_weights = weights[..., past_key.shape[0] :]
        mixed = past_weights @ past_value.permute(1, 0, 2) + new_weights @ new_value.permute(
            1, 0, 2
        )  # (G, H/G*R, E)
        mixed = mixed.unflatten(1, (self.group_size, -1)).permute(2, 0, 1, 3).flatten(1)
        return self.o_proj(mixed), new_key, new_value

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """RoPE on (R, heads, E) with cos and sin (R, E/2)."""
        cos, sin = cos[:, None], sin[:, None]
        first, second = states[..., : self.head_dim // 2], states[..., self.head_dim // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.self_attn = DeltaAttention(text)
        self.mlp = GraphMLP(text)
        self.input_layernorm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(text.hidden_size, text.rms_norm_eps)

    def branch(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, *past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """f(x) of x + f(x) for rows (R, D), and their keys and values."""
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

    Skipped tokens pass unchanged and give no key or value.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
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
            computed = row_weights * (inputs + branch)
        else:
            computed = inputs + row_weights * branch
        new_hidden = states.index_put((rows,), computed)
        return new_hidden[None], key, value, kept

    def select(
        self, states: Tensor, text_index: Tensor, frame_index: Tensor, row_order: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Kept positions (F, K), rising, and the weight (R, 1) of each computed row, if any."""
        if self.router is None:
            columns = torch.tensor(uniform_tokens(self.frame_num_tokens, self.num_kept))
            return columns.expand(frame_index.shape[0], -1).contiguous(), None
        all_logits = self.router(states)[:, 0]  # (T,); no dearer than gathering the frames first
        router_logits = all_logits.index_select(0, frame_index.flatten())
        router_logits = router_logits.unflatten(0, (-1, self.frame_num_tokens))  # (F, N)
        # TopK gives the heaviest first; the positions themselves are sorted back into time order.
        # By logits, not weights: many sigmoids round to 1, and ties have no defined order.
        # One frame of zeros is put behind and taken off again: TopK over no frames stops
        # onnxruntime 1.23, the last for Python 3.10, with a floating point exception.
        padded = torch.cat([router_logits, router_logits.new_zeros(1, self.frame_num_tokens)])
        kept = padded.topk(self.num_kept, dim=1).indices.sort(dim=1).values[:-1]
        kept_weights = router_logits.gather(1, kept).flatten().sigmoid()
        weights = torch.cat([torch.ones_like(text_index, dtype=states.dtype), kept_weights])
        return kept, weights.index_select(0, row_order)[:, None]


class HeadGraph(nn.Module):
    """The last norm and the language-model head, for any number of rows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = GraphLinear(text.hidden_size, text.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.norm(hidden))


def vision_graph(config: ModelConfig) -> nn.Module:
    """The reference's frame encoder with its linear layers turned to [in, out]."""
    encoder = FrameEncoder(config)
    for path, module in list(encoder.named_modules()):
        if isinstance(module, nn.Linear):
            twin = GraphLinear(module.in_features, module.out_features, module.bias is not None)
            encoder.set_submodule(path, twin)
    return encoder


def linear_weight_names(graph: nn.Module) -> frozenset[str]:
    """Names of the weights that the graph holds as [in, out], transposed from the checkpoint."""
    return frozenset(
        f"{path}.weight"
        for path, module in graph.named_modules()
        if isinstance(module, GraphLinear)
    )
