"""Names, dtypes and dims of every graph's inputs and outputs: the one place that holds them.

The exporter traces by it, its check compares with it, the runtime binds by it. Letters, everywhere
the same: T tokens of a step, X of them text, F whole frames, N tokens a frame, K kept of a frame,
R = X + F*K rows that a MoD layer computes, S rows in a cache, D hidden, G key/value heads, E head
dim, V vocabulary, I image side in pixels.

Graphs of the `delta` dialect (plain ops, any opset from 20): a layer takes the past as a
token-major view and returns only the new rows, so that the runtime appends without a copy.
"""

from dataclasses import dataclass

from mod_edge.config import ModelConfig

Dims = tuple[str | int, ...]  # a letter is dynamic, a number static


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: numpy's dtype name and dims by letter or number."""

    name: str
    dtype: str
    dims: Dims


@dataclass(frozen=True)
class GraphSignature:
    """One graph: its name ("vision", "layer-07", "head"), kind and tensors in order."""

    name: str
    kind: str  # vision, dense, mod or head
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def file(self) -> str:
        """The graph's path inside a bundle."""
        prefix, _, number = self.name.partition("-")
        return f"layers/{number}.onnx" if number else f"{prefix}.onnx"


def layer_name(index: int) -> str:
    """The graph name of decoder layer `index`."""
    return f"layer-{index:02d}"


def vision_signature(config: ModelConfig) -> GraphSignature:
    """RGB frames as bytes -> connector output; scaling to -1..1 happens in the graph."""
    side = config.vision_config.image_size
    frame_embeds: Dims = ("F", config.frame_num_tokens, config.text_config.hidden_size)
    return GraphSignature(
        "vision",
        "vision",
        (TensorSpec("frames", "uint8", ("F", side, side, 3)),),
        (TensorSpec("frame_embeds", "float32", frame_embeds),),
    )


def layer_signature(config: ModelConfig, index: int) -> GraphSignature:
    """One decoder layer, dense or MoD."""
    text = config.text_config
    is_mod = index in config.mod_layers
    hidden: Dims = (1, "T", text.hidden_size)
    angles: Dims = (1, "T", text.head_dim // 2)
    heads = (text.num_key_value_heads, text.head_dim)
    routing_inputs = (
        TensorSpec("text_index", "int64", ("X",)),
        TensorSpec("frame_index", "int64", ("F", config.frame_num_tokens)),
        TensorSpec("row_order", "int64", ("R",)),
    )
    rows = "R" if is_mod else "T"
    return GraphSignature(
        layer_name(index),
        "mod" if is_mod else "dense",
        (
            TensorSpec("hidden", "float32", hidden),
            TensorSpec("cos", "float32", angles),
            TensorSpec("sin", "float32", angles),
            TensorSpec("past_key", "float32", ("S", *heads)),
            TensorSpec("past_value", "float32", ("S", *heads)),
            TensorSpec("past_length", "int64", (1,)),
            *(routing_inputs if is_mod else ()),
        ),
        (
            TensorSpec("new_hidden", "float32", hidden),
            TensorSpec("new_key", "float32", (rows, *heads)),
            TensorSpec("new_value", "float32", (rows, *heads)),
            *((TensorSpec("kept", "int64", ("F", config.num_kept)),) if is_mod else ()),
        ),
    )


def head_signature(config: ModelConfig) -> GraphSignature:
    """Final norm and language-model head, for any number of rows."""
    text = config.text_config
    return GraphSignature(
        "head",
        "head",
        (TensorSpec("hidden", "float32", (1, "T", text.hidden_size)),),
        (TensorSpec("logits", "float32", (1, "T", text.vocab_size)),),
    )
