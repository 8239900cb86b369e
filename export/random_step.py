"""Random inputs of one step for a graph, always the same, and the right outputs for them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mod_edge.config import ModelConfig
from mod_edge.export.step_io import Arrays, Past, StepContext, StepIo
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering

NUM_PAST, PAST_LENGTH = 17, 13  # the tail of the past is unused and must be masked
FIRST_POSITION = 1000

RandomInputs = tuple[Arrays, StepContext]


def random_step(
    reference: nn.Module,
    config: ModelConfig,
    signature: GraphSignature,
    lowering: Lowering,
    layout: StepLayout,
    forced_kept: np.ndarray | None = None,
) -> tuple[Arrays, Arrays]:
    """Inputs of a step of this layout for the graph, always the same, and the right outputs.

    Args:
        reference: from `reference_module`.
        config: the model's.
        signature: the graph's.
        lowering: what the graph was made for.
        layout: the step's shape.
        forced_kept: (F, K), the selection to follow instead of the reference's own.

    Returns:
        Arrays by input and by output name, in the graph's dtypes (bfloat16 as float32) and the
        right outputs in float32.
    """
    generator = torch.Generator().manual_seed(sum(layout.pieces))
    io = StepIo(config, signature, lowering)
    inputs, context = INPUTS[signature.kind](io, config, layout, generator)
    return inputs, io.outputs(reference, inputs, context, kept=forced_kept)


def _vision(
    _io: StepIo, config: ModelConfig, layout: StepLayout, generator: torch.Generator
) -> RandomInputs:
    side = config.vision_config.image_size
    shape = (layout.num_frames, side, side, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return {"frames": frames.numpy()}, StepContext()


def _head(
    io: StepIo, config: ModelConfig, layout: StepLayout, generator: torch.Generator
) -> RandomInputs:
    return io.head_inputs(_hidden(config, layout, generator)), StepContext()


def _rebase(
    io: StepIo, config: ModelConfig, _layout: StepLayout, generator: torch.Generator
) -> RandomInputs:
    key = torch.randn(NUM_PAST, config.text_config.head_dim, generator=generator)
    return io.rebase_inputs(key, FIRST_POSITION), StepContext(position=FIRST_POSITION)


def _layer(
    io: StepIo, config: ModelConfig, layout: StepLayout, generator: torch.Generator
) -> RandomInputs:
    text = config.text_config
    hidden = _hidden(config, layout, generator)
    shape = (NUM_PAST, text.num_key_value_heads, text.head_dim)
    key, value = (torch.randn(shape, generator=generator) for _ in range(2))
    inputs = io.layer_inputs(hidden, layout, FIRST_POSITION, Past(key, value, PAST_LENGTH))
    past_positions = torch.arange(PAST_LENGTH) * 3 + 5  # gaps, as a MoD layer's cache has
    return inputs, StepContext(layout, FIRST_POSITION, past_positions)


def _hidden(config: ModelConfig, layout: StepLayout, generator: torch.Generator) -> Tensor:
    """(T, D), from 0.01 to 1 row by row: only in small rows does a norm's epsilon show."""
    hidden = torch.randn(layout.num_tokens, config.text_config.hidden_size, generator=generator)
    return hidden * torch.logspace(-2, 0, layout.num_tokens)[:, None]


INPUTS: dict[
    GraphKind, Callable[[StepIo, ModelConfig, StepLayout, torch.Generator], RandomInputs]
] = {VISION: _vision, DENSE: _layer, MOD: _layer, HEAD: _head, REBASE: _rebase}
