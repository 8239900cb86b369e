"""VideoLLM-MoD in plain PyTorch: the reference for every graph and every stream.

There is no batch dim: hidden states are (T, D). One `step` takes text and whole frames in any
order; a stream gives the same numbers in one step, in several steps or token by token.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT, ModelConfig
from mod_edge.model.dtypes import widened
from mod_edge.model.layers import DecoderLayer, LayerCache, MoDDecoderLayer, RMSNorm
from mod_edge.model.vision import FrameEncoder
from mod_edge.plan.layout import StepLayout


@dataclass
class StepOutput:
    """Final hidden states (T, D) before the last norm, and each MoD layer's kept (F, K)."""

    hidden: Tensor
    kept: dict[int, Tensor]


class Decoder(nn.Module):
    """Token embedding, the layers, the last norm; parameter names are Hugging Face's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text_config
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(
            MoDDecoderLayer(config) if index in config.mod_layers else DecoderLayer(config)
            for index in range(text.num_hidden_layers)
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)


class VideoLLM(FrameEncoder):
    """The whole model: `vision_model`, `connector`, `model`, `lm_head`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self._tie_head()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Use a checkpoint's tensors as the parameters of the same names, without a copy."""
        head = weights[self.config.text_config.head_weight]
        self.load_state_dict({**weights, HEAD_WEIGHT: head}, assign=True)
        self._tie_head()

    def _tie_head(self) -> None:
        """Make a tied head and the embedding one parameter, not two that share memory."""
        if self.config.text_config.head_weight == EMBEDDING_WEIGHT:
            self.lm_head.weight = self.model.embed_tokens.weight

    def empty_caches(self) -> list[LayerCache]:
        """One empty cache per layer."""
        text = self.config.text_config
        return [LayerCache.empty(text) for _ in range(text.num_hidden_layers)]

    def step(
        self, embeds: Tensor, layout: StepLayout, positions: Tensor, caches: list[LayerCache]
    ) -> StepOutput:
        """Run the decoder layers over one step and append it to `caches`.

        Args:
            embeds: (T, D), token embeddings and frame embeddings in stream order.
            layout: which of the T rows are text and which are frames.
            positions: (T,) int64 RoPE positions.
            caches: one per layer, changed in place.
        """
        hidden, kept = embeds, {}
        for index, (layer, cache) in enumerate(zip(self.model.layers, caches, strict=True)):
            hidden, selection = layer(hidden, layout, positions, cache)
            if selection is not None:
                kept[index] = selection
        return StepOutput(hidden, kept)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, V), in at least float32, from final hidden states (rows, D)."""
        return widened(self.lm_head(self.model.norm(hidden)))

    def full_forward(self, embeds: Tensor, layout: StepLayout) -> Tensor:
        """Logits (T, V) of a whole stream in one step."""
        positions = torch.arange(len(embeds))
        return self.logits(self.step(embeds, layout, positions, self.empty_caches()).hidden)
