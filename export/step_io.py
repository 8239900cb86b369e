"""Inputs and expected outputs of one graph in one step, for the exporter's check and `verify`.

Inputs are laid out in the graph's dialect and rounded to its dtype. The expected outputs come from
the reference's own modules on exactly these inputs, so that each graph is checked alone. The
reference caches keys unrotated and selects by mask; a graph gets rotated keys.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mod_edge.config import ModelConfig
from mod_edge.export.trace import rounded
from mod_edge.model.layers import DecoderLayer, LayerCache, MoDDecoderLayer, RMSNorm, rotate
from mod_edge.model.quantized import quantized_linears, round_activations
from mod_edge.model.vision import FrameEncoder
from mod_edge.model.weight_codes import WeightCodes, weight_codes
from mod_edge.plan.graph_kind import DENSE, HEAD, MOD, REBASE, VISION, GraphKind
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.signature import GraphSignature
from mod_edge.plan.targets import Lowering
from mod_edge.plan.weight_forms import WeightForm

Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, Tensor]


# ---- the reference's modules ----


class ReferenceHead(nn.Module):
    """The reference model's last norm and head, under the head graph's weight names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.norm(hidden))


class ReferenceRebase(nn.Module):
    """The sink's keys as the reference rotates them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.frequencies = torch.tensor(inverse_frequencies(config.text_config), device="cpu")

    def forward(self, key: Tensor, num_evicted: int) -> Tensor:
        """(B, E), rotated by `num_evicted` positions."""
        return rotate(key[:, None], torch.tensor([num_evicted]), self.frequencies)[:, 0]


REFERENCES: dict[GraphKind, Callable[[ModelConfig], nn.Module]] = {
    VISION: FrameEncoder,
    DENSE: DecoderLayer,
    MOD: MoDDecoderLayer,
    HEAD: ReferenceHead,
    REBASE: ReferenceRebase,
}


def load_reference(
    config: ModelConfig,
    kind: GraphKind,
    weights: Iterable[tuple[str, Tensor]],
    form: WeightForm | None = None,
) -> nn.Module:
    """The reference module of a kind of graph, with `weights` (the graph's names), not copied.

    With a form, the weights are expected dequantized, and linear layers round their inputs.
    """
    with torch.device("meta"):
        module = REFERENCES[kind](config)
    module.load_state_dict(dict(weights), assign=True)
    if form is not None:
        round_activations(module, form)
    return module.eval()


def reference_module(
    config: ModelConfig,
    kind: GraphKind,
    weights: Iterable[tuple[str, Tensor]],
    weight_dtypes: Mapping[str, torch.dtype],
    form: WeightForm | None = None,
    codes: Mapping[str, WeightCodes] | None = None,
) -> nn.Module:
    """The float32 reference module of a kind of graph, its weights rounded as the graph's are.

    Args:
        config: the model's.
        kind: of the graph.
        weights: under the graph's names, as in the checkpoint.
        weight_dtypes: dtype of every weight in the graph; of a quantized one, its scales'.
        form: of quantized weights; None for the reference without quantization.
        codes: of quantized weights whose codes are known; those of others are computed.
    """
    with torch.device("meta"):
        linears = quantized_linears(REFERENCES[kind](config)) if form else {}

    def held(name: str, tensor: Tensor) -> Tensor:
        dtype = weight_dtypes[name]
        if form is not None and name.removesuffix(".weight") in linears:
            known = codes.get(name) if codes else None
            return (known or weight_codes(name, tensor, form, dtype)).values()
        return rounded(name, tensor, dtype).to(torch.float32)

    return load_reference(
        config, kind, ((name, held(name, tensor)) for name, tensor in weights), form
    )


# ---- steps ----


@dataclass(frozen=True)
class StepContext:
    """What a step's expected outputs depend on besides the graph's inputs.

    Attributes:
        layout: of a decoder layer's step.
        position: stream position of its first token; for the rebase graph, tokens evicted so far.
        past_positions: (S,) int64, positions of a layer's cached keys; None for all at 0, where
            rotation changes nothing.
    """

    layout: StepLayout | None = None
    position: int = 0
    past_positions: Tensor | None = None


@dataclass(frozen=True)
class Past:
    """A layer's cache.

    Attributes:
        key: (S, G, E), rotated; rows from `length` on are unused.
        value: (S, G, E), likewise.
        length: rows in use.
    """

    key: Tensor
    value: Tensor
    length: int


class StepIo:
    """Inputs and expected outputs of one graph, step by step."""

    def __init__(self, config: ModelConfig, signature: GraphSignature, lowering: Lowering) -> None:
        """For the graph that was exported for `lowering`."""
        self.config, self.signature, self.lowering = config, signature, lowering
        self.frequencies = torch.tensor(inverse_frequencies(config.text_config))
        self._dtype: torch.dtype = getattr(torch, lowering.dtype)
        self._is_delta = lowering.dialect == "delta"
        self._count = "past_length" if self._is_delta else "write_index"

    @property
    def num_cache_rows(self) -> int | None:
        """Rows of a layer's cache; None where the graph does not fix them."""
        capacity = self.lowering.capacity
        return None if capacity is None else capacity.of(self.signature.kind.is_mod)

    def fed(self, tensor: Tensor) -> np.ndarray:
        """`tensor` in the graph's dtype; bfloat16, which numpy lacks, as rounded float32."""
        held = tensor.to(self._dtype)
        return (held.float() if self._dtype == torch.bfloat16 else held).numpy()

    def head_inputs(self, hidden: Tensor) -> Arrays:
        """The head's inputs for rows (T, D)."""
        return {"hidden": self.fed(hidden[None])}

    def rebase_inputs(self, key: Tensor, num_evicted: int) -> Arrays:
        """The rebase graph's inputs for keys (B, E)."""
        cos, sin = self._angles(torch.tensor([num_evicted]))
        return {"key": self.fed(key), "cos": cos, "sin": sin}

    def layer_inputs(self, hidden: Tensor, layout: StepLayout, position: int, past: Past) -> Arrays:
        """A decoder layer's inputs for hidden states (T, D) from stream position `position` on."""
        cos, sin = self._angles(torch.arange(layout.num_tokens) + position)
        inputs = {
            "hidden": self.fed(hidden[None]),
            "cos": cos[None],
            "sin": sin[None],
            "past_key": self._laid_out(past.key),
            "past_value": self._laid_out(past.value),
            self._count: np.array([past.length]),
        }
        if self.signature.kind.is_mod:
            inputs |= {
                "text_index": layout.text_index,
                "frame_index": layout.frame_index,
                "row_order": layout.row_order,
            }
        return inputs

    @torch.inference_mode()
    def outputs(
        self,
        module: nn.Module,
        inputs: Arrays,
        context: StepContext,
        *,
        dtype: torch.dtype = torch.float32,
        kept: np.ndarray | None = None,
    ) -> Arrays:
        """The expected outputs for `inputs`, as float32 and int64.

        Args:
            module: the reference's, from `load_reference`, in `dtype`.
            inputs: of the graph.
            context: of the step.
            dtype: to compute in.
            kept: (F, K), a selection to use instead of the module's own.
        """
        # A copy: a layout's arrays are read-only, which torch cannot respect.
        fed = {name: torch.tensor(array) for name, array in inputs.items()}
        kind = self.signature.kind
        if kind.is_layer:
            return self._layer_outputs(module, fed, context, dtype, kept)
        if kind is VISION:
            return {"frame_embeds": module(fed["frames"]).float().numpy()}
        if kind is HEAD:
            return {"logits": module(fed["hidden"][0].to(dtype))[None].float().numpy()}
        assert kind is REBASE
        return {"rebased_key": module(fed["key"].to(dtype), context.position).float().numpy()}

    def _layer_outputs(
        self,
        module: nn.Module,
        fed: Tensors,
        context: StepContext,
        dtype: torch.dtype,
        kept: np.ndarray | None,
    ) -> Arrays:
        assert context.layout is not None
        cache = self._cache(fed, context, dtype)
        num_past = len(cache.positions)
        positions = torch.arange(context.layout.num_tokens) + context.position
        forced = () if kept is None else (torch.tensor(kept),)
        new_hidden, selection = module(
            fed["hidden"][0].to(dtype), context.layout, positions, cache, *forced
        )
        new_key = rotate(cache.key[num_past:], cache.positions[num_past:], self.frequencies)
        outputs = {"new_hidden": new_hidden[None].float().numpy()}
        for name, rows in (("key", new_key), ("value", cache.value[num_past:])):
            if self._is_delta:
                outputs[f"new_{name}"] = rows.float().numpy()
                continue
            present = fed[f"past_{name}"].float().clone()  # (1, G, S, E)
            present[0, :, num_past : num_past + len(rows)] = rows.float().transpose(0, 1)
            outputs[f"present_{name}"] = present.numpy()
        return outputs if selection is None else outputs | {"kept": selection.numpy()}

    def _cache(self, fed: Tensors, context: StepContext, dtype: torch.dtype) -> LayerCache:
        """The past in the reference's form: rows in use, keys unrotated."""
        key, value = fed["past_key"].to(dtype), fed["past_value"].to(dtype)
        if not self._is_delta:
            key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)
        length = int(fed[self._count])
        positions = context.past_positions
        if positions is None:
            positions = torch.zeros(length, dtype=torch.int64)
        return LayerCache(
            rotate(key[:length], -positions, self.frequencies), value[:length], positions
        )

    def _laid_out(self, rows: Tensor) -> np.ndarray:
        """Cache rows (S, G, E) in the graph's layout."""
        if self._is_delta:
            return self.fed(rows)
        assert self.num_cache_rows is not None
        buffer = rows.new_zeros(self.num_cache_rows, *rows.shape[1:])
        buffer[: len(rows)] = rows
        return self.fed(buffer.transpose(0, 1)[None].contiguous())

    def _angles(self, positions: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine (T, E/2) at positions (T,)."""
        angles = positions.to(torch.float64)[:, None] * self.frequencies
        return angles.cos().float().numpy(), angles.sin().float().numpy()
