"""Seeded random inputs of one step for a graph, and the expected outputs for them."""

import numpy as np
import torch
from torch import Tensor, nn

from mod_edge.config import ModelConfig
from mod_edge.export.step_io import Arrays, Past, StepContext, StepIo
from mod_edge.plan.graph_kind import HEAD, REBASE, VISION
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering

NUM_PAST, NUM_UNUSED = 17, 4  # rows of the past, the last of them unused where steps bind such
FIRST_POSITION = 1000
# The pieces of the one step that is random without a past, as the first of every stream is.
FIRST_STEP = (5,)


def random_step(
    reference: nn.Module,
    config: ModelConfig,
    signature: GraphSignature,
    lowering: Lowering,
    layout: StepLayout,
    forced_kept: np.ndarray | None = None,
) -> tuple[Arrays, Arrays]:
    """Inputs of a step of this layout for the graph, seeded by it, and the expected outputs.

    Args:
        reference: from `reference_module`.
        config: the model's.
        signature: the graph's.
        lowering: what the graph was exported for.
        layout: the step's shape.
        forced_kept: (F, K), the selection to use instead of the reference's own.

    Returns:
        Inputs by name in the graph's dtypes (bfloat16 as float32), outputs by name in float32.
    """
    io = StepIo(config, signature, lowering)
    inputs, context = _random_inputs(io, layout, torch.Generator().manual_seed(sum(layout.pieces)))
    return inputs, io.outputs(reference, inputs, context, kept=forced_kept)


def _random_inputs(
    io: StepIo, layout: StepLayout, generator: torch.Generator
) -> tuple[Arrays, StepContext]:
    kind, text = io.signature.kind, io.config.text_config
    if kind is VISION:
        side = io.config.vision_config.image_size
        size = (layout.num_frames, side, side, 3)
        frames = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return {"frames": frames.numpy()}, StepContext()
    if kind is REBASE:
        key = torch.randn(NUM_PAST, text.head_dim, generator=generator)
        return io.rebase_inputs(key, FIRST_POSITION), StepContext(position=FIRST_POSITION)
    hidden = _random_hidden(layout.num_tokens, text.hidden_size, generator)
    if kind is HEAD:
        return io.head_inputs(hidden), StepContext()
    row = (text.num_key_value_heads, text.head_dim)
    if layout.pieces == FIRST_STEP:
        no_past = torch.zeros(1, *row)
        inputs = io.layer_inputs(hidden, layout, 0, Past(no_past, no_past, 0))
        return inputs, StepContext(layout)
    key, value = (torch.randn(NUM_PAST, *row, generator=generator) for _ in range(2))
    length = NUM_PAST - NUM_UNUSED if io.lowering.binds_unused_rows else NUM_PAST
    inputs = io.layer_inputs(hidden, layout, FIRST_POSITION, Past(key, value, length))
    past_positions = torch.arange(length) * 3 + 5  # gaps, as in a MoD layer's cache
    return inputs, StepContext(layout, FIRST_POSITION, past_positions)


def _random_hidden(num_tokens: int, size: int, generator: torch.Generator) -> Tensor:
    """(T, D), scaled from 0.01 to 1 by row: a norm's epsilon shows only in small rows."""
    hidden = torch.randn(num_tokens, size, generator=generator)
    return hidden * torch.logspace(-2, 0, num_tokens)[:, None]
