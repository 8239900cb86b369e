"""Random inputs of one step for a graph, and what the reference's own module makes of them.

The reference keeps unrotated keys and selects by mask; the graph gets rotated keys in its dialect's
layout. Inputs are rounded to the graph's dtype before either sees them, and so are weights.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mod_edge.config import ModelConfig, TextConfig
from mod_edge.export.graphs import RebaseGraph
from mod_edge.export.trace import rounded
from mod_edge.model.layers import DecoderLayer, LayerCache, MoDDecoderLayer, RMSNorm, rotate
from mod_edge.model.vision import FrameEncoder
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering

NUM_PAST, PAST_LENGTH = 17, 13  # the tail of the past is unused and must be masked
FIRST_POSITION = 1000

Arrays = dict[str, np.ndarray]


class ReferenceHead(nn.Module):
    """The reference model's last norm and head, under the head graph's weight names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.norm(hidden))


REFERENCES: dict[GraphKind, Callable[[ModelConfig], nn.Module]] = {
    VISION: FrameEncoder,
    DENSE: DecoderLayer,
    MOD: MoDDecoderLayer,
    HEAD: ReferenceHead,
    REBASE: lambda _config: RebaseGraph(),
}


def reference_module(
    config: ModelConfig,
    kind: GraphKind,
    weights: Iterable[tuple[str, Tensor]],
    weight_dtypes: Mapping[str, torch.dtype],
) -> nn.Module:
    """The float32 reference behind a kind of graph, its weights rounded as the graph's are."""
    with torch.device("meta"):
        module = REFERENCES[kind](config)
    held = {
        name: rounded(name, tensor, weight_dtypes[name]).to(torch.float32)
        for name, tensor in weights
    }
    module.load_state_dict(held, assign=True)
    return module.eval()


@torch.no_grad()
def reference_step(
    reference: nn.Module,
    config: ModelConfig,
    signature: GraphSignature,
    lowering: Lowering,
    layout: StepLayout,
    forced_kept: Tensor | None = None,
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
    dtype = getattr(torch, lowering.dtype)
    if signature.kind is VISION:
        return _vision_step(reference, config, layout, generator)
    if signature.kind is REBASE:
        return _rebase_step(reference, config.text_config, dtype, generator)
    size = config.text_config.hidden_size
    hidden = torch.randn(layout.num_tokens, size, generator=generator)
    # From 0.01 to 1, row by row: only in small rows does a norm's epsilon show.
    hidden *= torch.logspace(-2, 0, layout.num_tokens)[:, None]
    hidden = hidden.to(dtype)
    if signature.kind is HEAD:
        return {"hidden": _fed(hidden[None])}, {"logits": reference(hidden.float())[None].numpy()}
    return _layer_step(reference, config, lowering, hidden, layout, generator, forced_kept)


def _fed(tensor: Tensor) -> np.ndarray:
    """As ONNX Runtime's CPU takes it: bfloat16 graphs are run as float32 ones there."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _vision_step(
    reference: nn.Module, config: ModelConfig, layout: StepLayout, generator: torch.Generator
) -> tuple[Arrays, Arrays]:
    side = config.vision_config.image_size
    shape = (layout.num_frames, side, side, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return {"frames": frames.numpy()}, {"frame_embeds": reference(frames).numpy()}


def _rebase_step(
    reference: nn.Module, text: TextConfig, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Arrays, Arrays]:
    key = torch.randn(NUM_PAST, text.head_dim, generator=generator).to(dtype)
    angles = FIRST_POSITION * torch.tensor(inverse_frequencies(text))[None]
    cos, sin = angles.cos().float(), angles.sin().float()
    inputs = {"key": _fed(key), "cos": cos.numpy(), "sin": sin.numpy()}
    return inputs, {"rebased_key": reference(key.float(), cos, sin).numpy()}


def _layer_step(
    reference: nn.Module,
    config: ModelConfig,
    lowering: Lowering,
    hidden: Tensor,
    layout: StepLayout,
    generator: torch.Generator,
    forced_kept: Tensor | None,
) -> tuple[Arrays, Arrays]:
    text = config.text_config
    frequencies = torch.tensor(inverse_frequencies(text))
    past_shape = (NUM_PAST, text.num_key_value_heads, text.head_dim)
    past_key, past_value = (
        torch.randn(past_shape, generator=generator).to(hidden.dtype) for _ in range(2)
    )
    past_positions = torch.arange(PAST_LENGTH) * 3 + 5  # gaps, as a MoD layer's cache has
    cache = LayerCache(
        rotate(past_key[:PAST_LENGTH].float(), -past_positions, frequencies),
        past_value[:PAST_LENGTH].float(),
        past_positions,
    )
    positions = torch.arange(layout.num_tokens) + FIRST_POSITION
    step = (hidden.float(), layout, positions, cache)
    new_hidden, kept = reference(*step) if forced_kept is None else reference(*step, forced_kept)
    angles = positions.to(torch.float64)[:, None] * frequencies
    inputs = {
        "hidden": _fed(hidden[None]),
        "cos": angles.cos().float()[None].numpy(),
        "sin": angles.sin().float()[None].numpy(),
    }
    outputs = {"new_hidden": new_hidden[None].numpy()}
    if kept is not None:
        inputs |= {
            "text_index": layout.text_index,
            "frame_index": layout.frame_index,
            "row_order": layout.row_order,
        }
        outputs["kept"] = kept.numpy()
    new_key = rotate(cache.key[PAST_LENGTH:], cache.positions[PAST_LENGTH:], frequencies)
    new_rows = {"key": new_key.numpy(), "value": cache.value[PAST_LENGTH:].numpy()}
    num_rows = _num_cache_rows(lowering, is_mod=kept is not None)
    for name, past in (("key", past_key), ("value", past_value)):
        fed, right = cache_arrays(lowering, _fed(past), new_rows[name], PAST_LENGTH, num_rows)
        inputs[f"past_{name}"] = fed
        outputs[f"{'new' if lowering.dialect == 'delta' else 'present'}_{name}"] = right
    count = "past_length" if lowering.dialect == "delta" else "write_index"
    return inputs | {count: np.array([PAST_LENGTH])}, outputs


def _num_cache_rows(lowering: Lowering, *, is_mod: bool) -> int:
    if lowering.capacity is None:
        return 0
    return lowering.capacity.of(is_mod)


def cache_arrays(
    lowering: Lowering,
    past: np.ndarray,
    new_rows: np.ndarray,
    past_length: int,
    num_cache_rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's past as its graph takes it, and the cache output that is right.

    Args:
        lowering: what the graph was made for.
        past: (S, G, E), rows behind `past_length` being unused.
        new_rows: (R, G, E), of the step.
        past_length: rows in use.
        num_cache_rows: of an `in_place` buffer, (1, G, num_cache_rows, E).
    """
    if lowering.dialect == "delta":
        return past, new_rows
    buffer = np.zeros((num_cache_rows, *past.shape[1:]), past.dtype)
    buffer[: len(past)] = past
    written = buffer.astype(np.float32)
    written[past_length : past_length + len(new_rows)] = new_rows
    fed, right = (np.ascontiguousarray(each.swapaxes(0, 1)[None]) for each in (buffer, written))
    return fed, right
