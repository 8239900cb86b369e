"""Names, dtypes and dims of every graph's inputs and outputs, defined only here.

The exporter traces by them and checks graphs against them; shape ranges, the engine builder and the
runtime use them too. Dims are the same everywhere: T tokens of a step, X of them text, F whole
frames, N tokens per frame, K kept per frame, R = X + F*K rows that a MoD layer computes, S rows in
a cache, D hidden, G key/value heads, E head dim, V vocabulary, I image side in pixels; B rows of
one layer's keys, heads and tokens counted together.

There are two dialects (`targets`). `delta`, plain ops: a layer takes the past as a token-major view
of any length and returns only the new rows, so the runtime appends without a copy. `in_place`: a
layer takes a head-major cache of fixed size, writes its rows at `write_index` and returns the same
buffer; input and output must be bound to one address.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mod_edge.config import ModelConfig
from mod_edge.errors import ExportError
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.targets import TARGETS, Lowering

Dims = tuple[str | int, ...]  # a letter is a dynamic dim, a number a static one


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; `dtype` is numpy's name, or "bfloat16"."""

    name: str
    dtype: str
    dims: Dims


@dataclass(frozen=True)
class GraphSignature:
    """One graph: its kind, its tensors in order, and for a decoder layer its index."""

    kind: GraphKind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layer_index: int | None = None

    def __post_init__(self) -> None:
        assert self.kind.is_layer == (self.layer_index is not None), "only layers have an index"

    @property
    def name(self) -> str:
        """Name in files and messages: "vision", "layer-07", "head", "rebase"."""
        return self.kind.name if self.layer_index is None else layer_name(self.layer_index)

    @property
    def file(self) -> str:
        """The graph's path inside a bundle."""
        if self.layer_index is None:
            return f"{self.kind.name}.onnx"
        return f"layers/{self.layer_index:02d}.onnx"

    @property
    def data_file(self) -> str | None:
        """The path of its weights; None if it has none."""
        return self.file.removesuffix("onnx") + "data" if self.kind.weight_prefixes else None

    @property
    def weight_prefixes(self) -> tuple[str, ...]:
        """Prefixes of its weights' names in a checkpoint."""
        return tuple(prefix.format(layer=self.layer_index) for prefix in self.kind.weight_prefixes)

    def weight_name(self, tensor_name: str) -> str:
        """The graph's name of the checkpoint's weight `tensor_name`."""
        return tensor_name.removeprefix(self.kind.cut_prefix.format(layer=self.layer_index))

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the graph and of its weights, if it has any."""
        return (self.file,) if self.data_file is None else (self.file, self.data_file)

    @property
    def aliases(self) -> dict[str, str]:
        """Outputs that are written into an input's buffer, mapped to that input's name."""
        outputs = {spec.name for spec in self.outputs}
        names = {"present_key": "past_key", "present_value": "past_value"}
        return {output: names[output] for output in names if output in outputs}


def layer_name(index: int) -> str:
    """The graph name of decoder layer `index`."""
    return f"layer-{index:02d}"


def bundle_signatures(
    config: ModelConfig, lowering: Lowering, layers: Sequence[int] | None = None
) -> list[GraphSignature]:
    """Every graph of a bundle in the order of a step, with all decoder layers or only `layers`.

    Raises:
        ExportError: the config's routing is for comparison only and has no graphs.
    """
    _require_graphs(config)
    indices = range(config.text_config.num_hidden_layers) if layers is None else layers
    signatures = [
        vision_signature(config, lowering),
        *(layer_signature(config, index, lowering) for index in indices),
        head_signature(config, lowering),
    ]
    if TARGETS[lowering.target].has_device_cache:
        signatures.append(rebase_signature(config, lowering))
    return signatures


def _require_graphs(config: ModelConfig) -> None:
    mod = config.mod_config
    if mod is None or not (mod.is_baseline or mod.selection == "random"):
        return
    name, value = ("insertion", mod.insertion) if mod.is_baseline else ("selection", mod.selection)
    raise ExportError(
        f"mod_config.{name}={value!r} is for comparison only and has no graphs; evaluate the "
        "checkpoint with mod-edge eval, or export one with a learned or uniform selection"
    )


def vision_signature(config: ModelConfig, lowering: Lowering) -> GraphSignature:
    """uint8 RGB frames -> connector output; the graph scales pixels to -1..1."""
    side = config.vision_config.image_size
    frame_embeds: Dims = ("F", config.frame_num_tokens, config.text_config.hidden_size)
    return GraphSignature(
        VISION,
        (TensorSpec("frames", "uint8", ("F", side, side, 3)),),
        (TensorSpec("frame_embeds", lowering.dtype, frame_embeds),),
    )


def layer_signature(config: ModelConfig, index: int, lowering: Lowering) -> GraphSignature:
    """One decoder layer, dense or MoD."""
    text, dtype = config.text_config, lowering.dtype
    is_mod = index in config.mod_layers
    hidden: Dims = (1, "T", text.hidden_size)
    angles: Dims = (1, "T", text.head_dim // 2)
    routing_inputs = (
        TensorSpec("text_index", "int64", ("X",)),
        TensorSpec("frame_index", "int64", ("F", config.frame_num_tokens)),
        TensorSpec("row_order", "int64", ("R",)),
    )
    cache_inputs, cache_outputs = _cache_specs(config, lowering, is_mod=is_mod)
    return GraphSignature(
        MOD if is_mod else DENSE,
        (
            TensorSpec("hidden", dtype, hidden),
            TensorSpec("cos", "float32", angles),
            TensorSpec("sin", "float32", angles),
            *cache_inputs,
            *(routing_inputs if is_mod else ()),
        ),
        (
            TensorSpec("new_hidden", dtype, hidden),
            *cache_outputs,
            *((TensorSpec("kept", "int64", ("F", config.num_kept)),) if is_mod else ()),
        ),
        layer_index=index,
    )


def _cache_specs(
    config: ModelConfig, lowering: Lowering, *, is_mod: bool
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    groups, size = config.text_config.num_key_value_heads, config.text_config.head_dim
    if lowering.capacity is None:
        past: Dims = ("S", groups, size)
        new: Dims = ("R" if is_mod else "T", groups, size)
        count, prefix = "past_length", "new"
    else:
        past = new = (1, groups, lowering.capacity.of(is_mod), size)
        count, prefix = "write_index", "present"
    inputs = (
        TensorSpec("past_key", lowering.dtype, past),
        TensorSpec("past_value", lowering.dtype, past),
        TensorSpec(count, "int64", (1,)),
    )
    outputs = (
        TensorSpec(f"{prefix}_key", lowering.dtype, new),
        TensorSpec(f"{prefix}_value", lowering.dtype, new),
    )
    return inputs, outputs


def head_signature(config: ModelConfig, lowering: Lowering) -> GraphSignature:
    """Final norm and language-model head, for any number of rows; logits are always float32."""
    text = config.text_config
    return GraphSignature(
        HEAD,
        (TensorSpec("hidden", lowering.dtype, (1, "T", text.hidden_size)),),
        (TensorSpec("logits", "float32", (1, "T", text.vocab_size)),),
    )


def rebase_signature(config: ModelConfig, lowering: Lowering) -> GraphSignature:
    """Rotates the sink's keys by one angle per pair of dims, for a cache on a device."""
    size = config.text_config.head_dim
    angles: Dims = (1, size // 2)
    return GraphSignature(
        REBASE,
        (
            TensorSpec("key", lowering.dtype, ("B", size)),
            TensorSpec("cos", "float32", angles),
            TensorSpec("sin", "float32", angles),
        ),
        (TensorSpec("rebased_key", lowering.dtype, ("B", size)),),
    )
