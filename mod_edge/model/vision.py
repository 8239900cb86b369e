"""SigLIP vision tower and connector: frames in, N tokens per frame out.

Parameter names are those of Hugging Face's `SiglipVisionModel`. A frame's tokens are the output of
the attention-pooling head (which VideoLLM-online calls "CLS") followed by the last hidden states
averaged onto a small grid, row by row; a model may have one of the two alone.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, softmax

from mod_edge.config import ModelConfig, VisionConfig
from mod_edge.model.dtypes import widened

POOLING_HEAD = "vision_model.head."  # prefix of its tensors' names in a checkpoint
PIXEL_MAX = 255.0


def _gelu_tanh(states: Tensor) -> Tensor:
    return gelu(states, approximate="tanh")


def _quick_gelu(states: Tensor) -> Tensor:
    return states * torch.sigmoid(1.702 * states)


# by Hugging Face's names, which do not tell that `gelu` is the exact one
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu": gelu,
    "quick_gelu": _quick_gelu,
}


class VisionAttention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        size = config.hidden_size
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = attend(
            self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden), self.num_heads
        )
        return self.out_proj(mixed)


class VisionMLP(nn.Module):
    """Two linear layers around the config's activation."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(hidden)))


class VisionLayer(nn.Module):
    """One pre-norm encoder layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class PoolingAttention(nn.Module):
    """Cross-attention with `nn.MultiheadAttention`'s parameters (packed in_proj)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * size))
        self.out_proj = nn.Linear(size, size)

    def forward(self, query: Tensor, hidden: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        states = (query, hidden, hidden)
        q, k, v = (linear(*each) for each in zip(states, weights, biases, strict=True))
        return self.out_proj(attend(q, k, v, self.num_heads))


class PoolingHead(nn.Module):
    """SigLIP's attention-pooling head: a learned probe attends to all patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = PoolingAttention(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(F, 1, Dv) from (F, patches, Dv)."""
        probe = self.probe.expand(hidden.shape[0], -1, -1)
        pooled = self.attention(probe, hidden)
        return pooled + self.mlp(self.layernorm(pooled))


class VisionEmbeddings(nn.Module):
    """Patches by a strided convolution, plus learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, size, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding(config.num_patches, size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values)  # (F, Dv, rows, columns)
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class VisionEncoder(nn.Module):
    """The stack of encoder layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class VisionTower(nn.Module):
    """Last hidden states of the patches and, with a head, the pooled "CLS" token of each frame."""

    def __init__(self, config: VisionConfig, *, has_head: bool) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = PoolingHead(config) if has_head else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor | None]:
        """(F, patches, Dv) and (F, 1, Dv) from (F, 3, I, I), normalised."""
        hidden = self.post_layernorm(self.encoder(self.embeddings(pixel_values)))
        return hidden, None if self.head is None else self.head(hidden)


class FrameEncoder(nn.Module):
    """Vision tower and connector: the computation of the `vision` graph."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision, size = config.vision_config, config.text_config.hidden_size
        self.has_cls = config.frame_token_cls
        self.vision_model = VisionTower(vision, has_head=config.frame_token_cls)
        self.connector = nn.Sequential(
            nn.Linear(vision.hidden_size, size), nn.GELU(), nn.Linear(size, size)
        )
        self.pooling = pooling_matrix(vision.grid_size, config.frame_token_pooled)
        self.image_mean, self.image_std = vision.image_mean, vision.image_std

    def forward(self, frames: Tensor) -> Tensor:
        """(F, N, D) from (F, I, I, 3) uint8 RGB."""
        return self.connector(self.frame_tokens(frames))

    def frame_tokens(self, frames: Tensor) -> Tensor:
        """(F, N, Dv), the connector's input, from (F, I, I, 3) uint8 RGB."""
        hidden, cls = self.vision_model(self.pixel_values(frames))
        if not len(self.pooling):
            return cls
        pooled = (self.pooling @ widened(hidden)).to(hidden.dtype)  # (F, rows*columns, Dv)
        return torch.cat([cls, pooled], dim=1) if self.has_cls else pooled

    def pixel_values(self, frames: Tensor) -> Tensor:
        """(F, 3, I, I) float32, the tower's input, from (F, I, I, 3) uint8 RGB."""
        # The cast comes first: TensorRT accepts uint8 only as the input of a cast.
        pixels = frames.to(torch.float32).permute(0, 3, 1, 2)
        mean, std = (_by_channel(each, pixels) for each in (self.image_mean, self.image_std))
        return (pixels / PIXEL_MAX - mean) / std


def _by_channel(values: tuple[float, float, float], pixels: Tensor) -> float | Tensor:
    """What `pixels` (F, 3, I, I) are combined with: (3, 1, 1), or the number that all share."""
    return values[0] if len(set(values)) == 1 else pixels.new_tensor(values)[:, None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Softmax attention of (F, Tq, Dv) over (F, Tk, Dv) in `num_heads` heads."""

    def split(states: Tensor) -> Tensor:  # (F, heads, T, Dv / heads)
        return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    query, key, value = split(query), split(key), split(value)
    # Scaled in at least float32: in a bfloat16 graph the factor would be rounded too.
    scores = widened(query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5
    return (softmax(scores, dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def pooling_matrix(grid_size: int, pooled: tuple[int, int] | None) -> Tensor:
    """(rows*columns, patches): adaptive average pooling of a square grid as one matrix.

    Without `pooled` it has no rows.

    The same cells as `torch.nn.functional.adaptive_avg_pool2d`, also where the grid is not
    divisible (14 by 3); a MatMul exports everywhere, adaptive pooling of such grids does not.
    """

    def side(num_cells: int) -> Tensor:  # (cells, grid)
        matrix = torch.zeros(num_cells, grid_size, device="cpu")
        for cell in range(num_cells):
            first, last = cell * grid_size // num_cells, -(-(cell + 1) * grid_size // num_cells)
            matrix[cell, first:last] = 1 / (last - first)
        return matrix

    rows, columns = pooled or (0, 0)
    return torch.kron(side(rows), side(columns))
