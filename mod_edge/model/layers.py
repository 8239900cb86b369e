"""The decoder's layers in plain PyTorch: slow and simple, the reference for every graph.

Weights may have any float dtype; norms, rotation, softmax and router compute in at least float32,
as in the graphs.

Keys are cached unrotated together with their positions and rotated in every step. This is slow, but
to evict tokens it suffices to lower the positions of those that follow; the runtime's faster rule
must give the same result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softmax

from mod_edge.config import ModelConfig, TextConfig
from mod_edge.model.dtypes import widened
from mod_edge.model.routing import keep_top_tokens, random_tokens, rows_to_compute, uniform_tokens
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.rope import inverse_frequencies


@dataclass
class LayerCache:
    """One layer's cache of S tokens: keys and values (S, G, E), positions (S,) int64."""

    key: Tensor  # normed where the model has `qk_norm`, not rotated
    value: Tensor
    positions: Tensor

    @staticmethod
    def empty(config: TextConfig) -> "LayerCache":
        """A cache of no tokens."""
        rows = torch.zeros(0, config.num_key_value_heads, config.head_dim)
        return LayerCache(rows, rows, torch.zeros(0, dtype=torch.int64))

    def append(self, key: Tensor, value: Tensor, positions: Tensor) -> None:
        """Add rows at the end, in their dtype."""
        self.key = torch.cat([self.key.to(key.dtype), key])
        self.value = torch.cat([self.value.to(value.dtype), value])
        self.positions = torch.cat([self.positions, positions])

    def keep(self, rows: Tensor) -> None:
        """Drop every row that is not in `rows` (int64, ascending)."""
        self.key, self.value = self.key[rows], self.value[rows]
        self.positions = self.positions[rows]


def rotate(states: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """`states` (S, heads, E) with RoPE at `positions` (S,); `frequencies` (E/2,) float64."""
    wide = widened(states)
    angles = positions.to(torch.float64)[:, None, None] * frequencies  # (S, 1, E/2)
    cos, sin = angles.cos().to(wide.dtype), angles.sin().to(wide.dtype)
    first, second = wide.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(states.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim, in at least float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = widened(hidden)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * (wide * scale)).to(hidden.dtype)


def head_norm(config: TextConfig) -> RMSNorm | nn.Identity:
    """What each head's query or key passes before RoPE: a norm over E, or nothing."""
    return RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()


class Attention(nn.Module):
    """Causal grouped-query attention over a cache and the new rows."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.num_key_value_heads = config.num_key_value_heads
        width, kv_width = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        has_bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, width, bias=has_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=has_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=has_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = head_norm(config), head_norm(config)
        # On the CPU even where the weights are on "meta": it is not a parameter.
        self.frequencies = torch.tensor(inverse_frequencies(config), device="cpu")

    def forward(self, hidden: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """(R, D) from (R, D); appends R rows to `cache`."""
        rows = hidden.shape[0]
        query = self.q_proj(hidden).view(rows, self.num_heads, self.head_dim)
        key = self.k_proj(hidden).view(rows, self.num_key_value_heads, self.head_dim)
        value = self.v_proj(hidden).view(rows, self.num_key_value_heads, self.head_dim)
        query, key = self.q_norm(query), self.k_norm(key)
        num_past = len(cache.positions)
        cache.append(key, value, positions)
        group = self.num_heads // self.num_key_value_heads
        query = rotate(query, positions, self.frequencies).transpose(0, 1)  # (H, R, E)
        keys = rotate(cache.key, cache.positions, self.frequencies)  # (S, G, E)
        keys = keys.repeat_interleave(group, dim=1).permute(1, 2, 0)  # (H, E, S)
        values = cache.value.repeat_interleave(group, dim=1).transpose(0, 1)  # (H, S, E)
        scores = query @ keys / self.head_dim**0.5  # (H, R, S)
        is_future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(num_past + 1)
        probabilities = softmax(widened(scores).masked_fill(is_future, -torch.inf), dim=-1)
        mixed = probabilities.to(values.dtype) @ values  # (H, R, E)
        mixed = mixed.transpose(0, 1).flatten(1)  # (R, H*E)
        return self.o_proj(mixed)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class DecoderLayer(nn.Module):
    """A decoder layer that computes every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.self_attn = Attention(text)
        self.mlp = MLP(text)
        self.input_layernorm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(text.hidden_size, text.rms_norm_eps)

    def branch(self, hidden: Tensor, positions: Tensor, cache: LayerCache) -> Tensor:
        """f(x) of x + f(x): what attention and MLP add to the residual stream, (R, D)."""
        attention = self.self_attn(self.input_layernorm(hidden), positions, cache)
        return attention + self.mlp(self.post_attention_layernorm(hidden + attention))

    def forward(
        self, hidden: Tensor, layout: StepLayout, positions: Tensor, cache: LayerCache
    ) -> tuple[Tensor, Tensor | None]:
        """New hidden states (T, D) of a step's (T, D), and no selection."""
        return hidden + self.branch(hidden, positions, cache), None


class MoDDecoderLayer(DecoderLayer):
    """A decoder layer that computes all text but only K tokens of each frame (paper, 3.2).

    Skipped tokens pass unchanged and write no key or value. In the baselines K is 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.mod_config is not None
        self.num_kept = config.num_kept
        self.selection = config.mod_config.selection
        self.router_scaling = config.mod_config.router_scaling
        self.router = nn.Linear(config.text_config.hidden_size, 1) if config.has_router else None

    def forward(
        self,
        hidden: Tensor,
        layout: StepLayout,
        positions: Tensor,
        cache: LayerCache,
        forced_kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """New hidden states (T, D), and the kept positions (F, K) within each frame.

        `forced_kept` (F, K) replaces the router's own choice, for comparisons that follow another
        backend's selection among ties.
        """
        frame_index = torch.tensor(layout.frame_index)
        kept, token_weights = self.select(hidden, frame_index)
        if forced_kept is not None:
            kept = forced_kept
        rows = rows_to_compute(len(hidden), frame_index, kept)
        inputs, weights = hidden[rows], token_weights[rows, None]
        branch = self.branch(inputs, positions[rows], cache)
        new_hidden = hidden.clone()
        if self.router_scaling == "full":
            computed = weights * widened(inputs + branch)
        else:
            computed = widened(inputs) + weights * widened(branch)
        new_hidden[rows] = computed.to(hidden.dtype)
        return new_hidden, kept

    def select(self, hidden: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
        """The kept positions (F, K), and each token's weight (T,): 1 for text, always."""
        hidden = widened(hidden)
        token_weights = hidden.new_ones(len(hidden))
        if self.router is None:
            return self._unrouted(*frame_index.shape), token_weights
        weight, bias = widened(self.router.weight), widened(self.router.bias)
        router_logits = linear(hidden[frame_index], weight, bias)[..., 0]  # (F, N)
        token_weights[frame_index] = router_logits.sigmoid()
        # The heaviest weights are those of the largest logits, but sigmoids round to 1 and tie.
        return keep_top_tokens(router_logits, self.num_kept), token_weights

    def _unrouted(self, num_frames: int, num_tokens: int) -> Tensor:
        """The kept positions (F, K) where no router chooses."""
        if self.num_kept == 0:
            return torch.zeros(num_frames, 0, dtype=torch.int64)
        if self.selection == "random":
            return random_tokens(num_frames, num_tokens, self.num_kept)
        return torch.tensor(uniform_tokens(num_tokens, self.num_kept)).expand(num_frames, -1)
