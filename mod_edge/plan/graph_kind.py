"""The kinds of graph in a bundle.

Differences between kinds are fields here, or entries in tables keyed by kind: shape ranges
(`bundle.shape_ranges`), modules to trace (`export.graphs`), the reference's modules and outputs
(`export.step_io`), random and recorded steps (`export.random_step`,
`verification.reference_graph`). A test fails if a kind has no entry.
"""

from dataclasses import dataclass

LAYER_PREFIX = "model.layers.{layer}."


@dataclass(frozen=True)
class GraphKind:
    """One kind of graph.

    Attributes:
        name: in manifests.
        weight_prefixes: of its weights' names in a checkpoint; "{layer}" is the index.
        cut_prefix: prefix that the graph's modules omit from these names.
        is_layer: whether it is one decoder layer; such graphs have an index and a KV cache.
        is_mod: whether it is a MoD layer, whose cache has rows only for text and kept tokens.
        takes_text: whether it runs in a step without frames.
    """

    name: str
    weight_prefixes: tuple[str, ...]
    cut_prefix: str = ""
    is_layer: bool = False
    is_mod: bool = False
    takes_text: bool = True


VISION = GraphKind("vision", ("vision_model.", "connector."), takes_text=False)
DENSE = GraphKind("dense", (LAYER_PREFIX,), cut_prefix=LAYER_PREFIX, is_layer=True)
MOD = GraphKind("mod", (LAYER_PREFIX,), cut_prefix=LAYER_PREFIX, is_layer=True, is_mod=True)
HEAD = GraphKind("head", ("model.norm.", "lm_head."), cut_prefix="model.")
REBASE = GraphKind("rebase", ())

KINDS = (VISION, DENSE, MOD, HEAD, REBASE)
