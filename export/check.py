"""Every graph is checked as it is written: its promises first, then its numbers against PyTorch.

The numbers come from the reference's own layers (keys unrotated, selection by mask) on random
inputs in the three shapes of step that a stream has: one frame, many frames, text only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mod_edge.config import ModelConfig
from mod_edge.errors import ExportError
from mod_edge.layers import DecoderLayer, LayerCache, MoDDecoderLayer, RMSNorm, rotate
from mod_edge.layout import FRAME, StepLayout, step_layout
from mod_edge.onnx_session import session_options
from mod_edge.rope import inverse_frequencies
from mod_edge.signature import GraphSignature, TensorSpec
from mod_edge.vision import FrameEncoder

# Largest error allowed, relative to the reference's largest value (at least 1). Measured over the
# graphs of all presets: 2.4e-6 at most (a MoD layer of 8b). Of real faults, the vision tower's GELU
# without its tanh gives 4e-5, a norm's epsilon divided by ten 0.06, a wrong RoPE 0.4.
ALLOWED_RELATIVE_ERROR = 2e-5
STEP_SHAPES = {"one frame": (3, FRAME), "many frames": (1, FRAME, 1, FRAME, 2), "text": (4,)}
NUM_PAST, PAST_LENGTH = 17, 13  # the tail of the past is unused and must be masked
FIRST_POSITION = 1000
FORBIDDEN_OPS = frozenset({"Loop", "If", "Scan"})
REQUIRED_MOD_OPS = ("Gather", "ScatterND")
REQUIRED_ROUTER_OPS = ("TopK",)

Arrays = dict[str, np.ndarray]


def check_structure(
    path: Path, signature: GraphSignature, weight_names: Mapping[str, object], *, has_router: bool
) -> None:
    """Hold the graph file against what its signature and kind promise.

    Raises:
        ExportError: names every broken promise.
    """
    onnx.checker.check_model(str(path))
    graph = onnx.load(str(path), load_external_data=False).graph
    ops = {node.op_type for node in graph.node}
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    faults = [f"it holds {op}" for op in sorted(ops & FORBIDDEN_OPS)]
    required: tuple[str, ...] = ()
    if signature.kind == "mod":
        required = REQUIRED_MOD_OPS + (REQUIRED_ROUTER_OPS if has_router else ())
    faults += [f"it lacks {op}" for op in required if op not in ops]
    faults += [f"input {value.name!r} is unused" for value in graph.input if value.name not in used]
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        found, wanted = [_spec(value) for value in values], list(specs)
        if found != wanted:
            faults.append(f"it has {found}, wanted {wanted}")
    initializers = [tensor.name for tensor in graph.initializer]
    faults += [
        f"weight {name!r} is there {initializers.count(name)} times"
        for name in weight_names
        if initializers.count(name) != 1 or name not in used
    ]
    if faults:
        raise ExportError(f"{path.name}: {'; '.join(faults)}; this is a bug of mod-edge")


def check_numbers(
    path: Path, config: ModelConfig, signature: GraphSignature, weights: dict[str, Tensor]
) -> float:
    """The graph's largest relative error against the reference over all step shapes.

    Args:
        path: the graph.
        config: the model's.
        signature: the graph's.
        weights: the reference module's state, names as in `graph_module`.

    Raises:
        ExportError: the error exceeds `ALLOWED_RELATIVE_ERROR`, or another selection was made.
    """
    session = onnxruntime.InferenceSession(
        str(path), session_options(), providers=["CPUExecutionProvider"]
    )
    reference = _reference(config, signature, weights)
    worst = 0.0
    for shape, pieces in STEP_SHAPES.items():
        layout = step_layout(pieces, config.frame_num_tokens, config.num_kept)
        generator = torch.Generator().manual_seed(sum(pieces))
        inputs, theirs = _reference_step(reference, config, signature, layout, generator)
        names = [spec.name for spec in signature.outputs]
        ours = dict(zip(names, session.run(names, inputs), strict=True))
        for name in names:
            if ours[name].dtype == np.int64:
                if not np.array_equal(ours[name], theirs[name]):
                    raise ExportError(f"{path.name}, {shape}: {name} differs from the reference")
                continue
            error = relative_error(ours[name], theirs[name])
            if not error <= ALLOWED_RELATIVE_ERROR:
                raise ExportError(
                    f"{path.name}, {shape}: {name} differs from the reference by {error:.1e}, "
                    f"allowed {ALLOWED_RELATIVE_ERROR:.0e}"
                )
            worst = max(worst, error)
    return worst


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the reference's largest value (at least 1); shapes must agree."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.size:
        return 0.0
    return float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max())))


def _reference(
    config: ModelConfig, signature: GraphSignature, weights: dict[str, Tensor]
) -> nn.Module:
    makers: dict[str, Callable[[ModelConfig], nn.Module]] = {
        "vision": FrameEncoder,
        "dense": DecoderLayer,
        "mod": MoDDecoderLayer,
        "head": ReferenceHead,
    }
    with torch.device("meta"):
        module = makers[signature.kind](config)
    module.load_state_dict(weights, assign=True)
    return module.eval()


class ReferenceHead(nn.Module):
    """The reference model's last norm and head, under the head graph's weight names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.norm(hidden))


@torch.no_grad()
def _reference_step(
    reference: nn.Module,
    config: ModelConfig,
    signature: GraphSignature,
    layout: StepLayout,
    generator: torch.Generator,
) -> tuple[Arrays, Arrays]:
    """Random inputs of a step for the graph, and the reference's outputs for them."""
    if signature.kind == "vision":
        side = config.vision_config.image_size
        shape = (layout.num_frames, side, side, 3)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        if not layout.num_frames:  # nothing to encode in a step of text
            frames = frames.new_zeros((1, side, side, 3))
        return {"frames": frames.numpy()}, {"frame_embeds": reference(frames).numpy()}
    size = config.text_config.hidden_size
    hidden = torch.randn(layout.num_tokens, size, generator=generator)
    # From 0.01 to 1, row by row: only in small rows does a norm's epsilon show.
    hidden *= torch.logspace(-2, 0, layout.num_tokens)[:, None]
    if signature.kind == "head":
        return {"hidden": hidden[None].numpy()}, {"logits": reference(hidden)[None].numpy()}
    return _layer_step(reference, config, hidden, layout, generator)


def _layer_step(
    reference: nn.Module,
    config: ModelConfig,
    hidden: Tensor,
    layout: StepLayout,
    generator: torch.Generator,
) -> tuple[Arrays, Arrays]:
    text = config.text_config
    frequencies = torch.tensor(inverse_frequencies(text))
    past_shape = (NUM_PAST, text.num_key_value_heads, text.head_dim)
    past_key = torch.randn(past_shape, generator=generator)
    past_value = torch.randn(past_shape, generator=generator)
    past_positions = torch.arange(NUM_PAST) * 3 + 5  # gaps, as a MoD layer's cache has
    cache = LayerCache(
        past_key[:PAST_LENGTH], past_value[:PAST_LENGTH], past_positions[:PAST_LENGTH]
    )
    positions = torch.arange(layout.num_tokens) + FIRST_POSITION
    new_hidden, kept = reference(hidden, layout, positions, cache)
    angles = positions.to(torch.float64)[:, None] * frequencies
    inputs = {
        "hidden": hidden[None].numpy(),
        "cos": angles.cos().float()[None].numpy(),
        "sin": angles.sin().float()[None].numpy(),
        "past_key": rotate(past_key, past_positions, frequencies).numpy(),
        "past_value": past_value.numpy(),
        "past_length": np.array([PAST_LENGTH]),
    }
    new_key = rotate(cache.key[PAST_LENGTH:], cache.positions[PAST_LENGTH:], frequencies)
    outputs = {
        "new_hidden": new_hidden[None].numpy(),
        "new_key": new_key.numpy(),
        "new_value": cache.value[PAST_LENGTH:].numpy(),
    }
    if kept is not None:
        inputs |= {
            "text_index": layout.text_index,
            "frame_index": layout.frame_index,
            "row_order": layout.row_order,
        }
        outputs["kept"] = kept.numpy()
    return inputs, outputs


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    dims = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, dims)
