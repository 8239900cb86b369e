"""A model's cost from its config: parameters, and KV bytes and FLOPs per frame.

A multiply-add is two FLOPs. Attention counts the causal half, as the paper's profile of 600 frames
does. The decoder's figure leaves out router, norms, activations and the language-model head (which
runs only for decisions and replies); vision is counted separately.
"""

from dataclasses import dataclass, replace

from mod_edge.config import ModelConfig, TextConfig, VisionConfig
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.targets import ITEM_BYTES

# The paper profiles 600 frames: five minutes at 2 frames/s.
PAPER_NUM_FRAMES = 600


@dataclass(frozen=True)
class StreamCost:
    """Decoder cost of a stream of frames, as means per frame."""

    tokens: int
    flops: float
    kv_bytes: int


@dataclass(frozen=True)
class Comparison:
    """The model's cost and that of the full-computation model; ratios are model / full."""

    model: StreamCost
    full: StreamCost

    @property
    def flops_ratio(self) -> float:
        """Decoder FLOPs relative to full computation."""
        return self.model.flops / self.full.flops

    @property
    def kv_ratio(self) -> float:
        """Cache bytes relative to full computation."""
        return self.model.kv_bytes / self.full.kv_bytes


@dataclass(frozen=True)
class StepCost:
    """Decoder cost of one step, without the head.

    Attributes:
        linear_flops: of the products with weights.
        attention_flops: of the products with keys and values.
        kv_elements: numbers in the keys and values that all layers read and write.
    """

    linear_flops: float
    attention_flops: float
    kv_elements: int

    @property
    def flops(self) -> float:
        """Of both kinds of products."""
        return self.linear_flops + self.attention_flops


def full_computation(config: ModelConfig) -> ModelConfig:
    """The model of the same size in which every layer computes every token."""
    return replace(config, mod_config=None)


def step_cost(config: ModelConfig, added: Rows, past: Rows) -> StepCost:
    """The cost of a step that appends `added` rows to a cache of `past` rows."""
    text = config.text_config
    num_mod = len(config.mod_layers)
    width = text.num_attention_heads * text.head_dim
    linear, attention, kv_rows = 0.0, 0.0, 0
    for num_layers, rows, before in (
        (text.num_hidden_layers - num_mod, added.dense, past.dense),
        (num_mod, added.mod, past.mod),
    ):
        linear += num_layers * 2.0 * rows * layer_parameters(config)
        # Of its own step a row attends to half the rows on average; 2 FLOPs each for QK and PV.
        attention += num_layers * 4.0 * rows * (before + rows / 2) * width
        kv_rows += num_layers * (before + rows)
    kv_elements = 2 * kv_rows * text.num_key_value_heads * text.head_dim
    return StepCost(linear, attention, kv_elements)


def compare_with_full(config: ModelConfig, num_frames: int, *, has_interval: bool) -> Comparison:
    """Costs over a stream of `num_frames`, with or without the interval token between frames."""
    return Comparison(
        _stream_cost(config, num_frames, int(has_interval)),
        _stream_cost(full_computation(config), num_frames, int(has_interval)),
    )


def layer_parameters(config: ModelConfig) -> int:
    """Weights of one decoder layer's linear layers, without the router."""
    text = config.text_config
    kv_width = text.num_key_value_heads * text.head_dim
    width = text.num_attention_heads * text.head_dim
    attention = text.hidden_size * (2 * width + 2 * kv_width)
    return attention + 3 * text.hidden_size * text.intermediate_size


def num_parameters(config: ModelConfig) -> dict[str, int]:
    """Weights by part and in total; a tied head is counted once, as embedding."""
    text, size = config.text_config, config.text_config.hidden_size
    routers = len(config.mod_layers) * (size + 1) if config.has_router else 0
    counts = {
        "vision": _vision_parameters(config.vision_config, has_head=config.frame_token_cls),
        "connector": _linear(config.vision_config.hidden_size, size) + _linear(size, size),
        "embedding": text.vocab_size * size,
        "decoder": text.num_hidden_layers * (layer_parameters(config) + _layer_vectors(text))
        + routers
        + size,
        "head": 0 if text.tie_word_embeddings else text.vocab_size * size,
    }
    return counts | {"total": sum(counts.values())}


def _layer_vectors(text: TextConfig) -> int:
    """Weights of one decoder layer's norms and biases, without the router's."""
    num_heads, num_key_heads = text.num_attention_heads, text.num_key_value_heads
    biases = (num_heads + 2 * num_key_heads) * text.head_dim if text.attention_bias else 0
    head_norms = 2 * text.head_dim if text.qk_norm else 0
    return 2 * text.hidden_size + biases + head_norms


def _vision_parameters(vision: VisionConfig, *, has_head: bool) -> int:
    """Of the SigLIP tower, perhaps with its pooling head; linear layers and norms have biases."""
    size = vision.hidden_size
    norm = 2 * size
    mlp = _linear(size, vision.intermediate_size) + _linear(vision.intermediate_size, size)
    embeddings = _linear(3 * vision.patch_size**2, size) + vision.num_patches * size
    layer = 2 * norm + 4 * _linear(size, size) + mlp
    head = size + 4 * _linear(size, size) + norm + mlp if has_head else 0
    return embeddings + vision.num_hidden_layers * layer + norm + head


def _linear(num_inputs: int, num_outputs: int) -> int:
    return num_inputs * num_outputs + num_outputs


def vision_flops(config: ModelConfig) -> float:
    """FLOPs of encoding one frame: vision tower, pooling head and connector."""
    vision, size = config.vision_config, config.vision_config.hidden_size
    patches = vision.num_patches
    embedding = patches * 3 * vision.patch_size**2 * size
    layer = patches * (4 * size**2 + 2 * size * vision.intermediate_size) + 2 * patches**2 * size
    head = 2 * patches * size**2 if config.frame_token_cls else 0
    hidden = config.text_config.hidden_size
    connector = config.frame_num_tokens * (size * hidden + hidden**2)
    return 2.0 * (embedding + vision.num_hidden_layers * layer + head + connector)


def _stream_cost(config: ModelConfig, num_frames: int, num_intervals: int) -> StreamCost:
    text = config.text_config
    tokens = config.frame_num_tokens + num_intervals
    num_mod = len(config.mod_layers)
    flops, kv_rows = 0.0, 0
    for num_layers, rows in (
        (text.num_hidden_layers - num_mod, tokens),
        (num_mod, config.num_kept + num_intervals),
    ):
        # Row i attends to i + 1 rows, half the square on average; 2 FLOPs each for QK and PV.
        width = text.num_attention_heads * text.head_dim
        attention = 2.0 * rows * (rows * num_frames) * width
        flops += num_layers * (2.0 * rows * layer_parameters(config) + attention)
        kv_rows += num_layers * rows
    row_bytes = 2 * text.num_key_value_heads * text.head_dim * ITEM_BYTES["float32"]
    return StreamCost(tokens, flops, kv_rows * row_bytes)
