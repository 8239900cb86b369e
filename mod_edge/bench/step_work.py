"""The least work of the parts of a stream: bytes of their graphs, keys and values, and products."""

from dataclasses import dataclass

from mod_edge.bench.ceilings import Work
from mod_edge.bundle.bundle import Bundle
from mod_edge.config import ModelConfig
from mod_edge.plan.costs import step_cost, vision_flops
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import GraphSignature, head_signature, vision_signature
from mod_edge.plan.targets import ITEM_BYTES


@dataclass(frozen=True)
class BundleWork:
    """The least work of a bundle's parts, with the weights that a graph's files hold.

    Attributes:
        bundle: with every layer.
        config: of the bundle, or that of full computation on its layers.
        weight_bytes: of all decoder layers of `config`.
    """

    bundle: Bundle
    config: ModelConfig
    weight_bytes: int

    def step(self, added: Rows, past: Rows) -> Work:
        """Of a decoder step without its head."""
        cost = step_cost(self.config, added, past)
        kv_bytes = cost.kv_elements * ITEM_BYTES[self.bundle.lowering.dtype]
        layer = next(each for each in self.bundle.signatures() if each.kind.is_layer)
        linear = self._products(layer.kind, cost.linear_flops)
        return linear.plus(Work(self.weight_bytes + kv_bytes, cost.attention_flops))

    def vision(self, num_frames: int) -> Work:
        """Of encoding frames at once."""
        signature = vision_signature(self.config, self.bundle.lowering)
        products = self._products(signature.kind, num_frames * vision_flops(self.config))
        return products.plus(Work(weight_bytes(self.bundle, signature)))

    def head(self, num_rows: int) -> Work:
        """Of the logits of that many rows."""
        signature = head_signature(self.config, self.bundle.lowering)
        text = self.config.text_config
        flops = 2.0 * num_rows * text.vocab_size * text.hidden_size
        weights = Work(weight_bytes(self.bundle, signature))
        return self._products(signature.kind, flops).plus(weights)

    def _products(self, kind: GraphKind, flops: float) -> Work:
        """These products, in the arithmetic that graphs of that kind have on a CPU."""
        form = self.bundle.lowering.weight_form(kind)
        is_int8 = form is not None and form.activations != ""
        return Work(int8_flops=flops) if is_int8 else Work(float_flops=flops)


def weight_bytes(bundle: Bundle, signature: GraphSignature) -> int:
    """Bytes of a graph's weights, as its file holds them."""
    name = signature.data_file
    return bundle.manifest.files[name].size_bytes if name is not None else 0


def layer_weight_bytes(bundle: Bundle) -> list[int]:
    """Bytes of each decoder layer's weights."""
    layers = (each for each in bundle.signatures() if each.kind.is_layer)
    return [weight_bytes(bundle, layer) for layer in layers]
