"""Hugging Face transformers in bfloat16: `run_transformers.py FOLDER eager|compiled`."""

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from benchmarks.peers.workers.line_protocol import MAX_STEP, THREADS, Steps, serve

TOKEN_ID = 500


class Eager(Steps):
    """The model as it is, with a cache that grows; the head at the last token only."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(THREADS)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.cache: Any = None
        self.past = self.added = 0

    def fill(self, past: int) -> None:
        self.cache = DynamicCache(config=self.model.config)
        self.past = past
        for layer, (keys, values) in enumerate(self.past_of_layers(past)):
            self.cache.update(keys, values, layer)

    def past_of_layers(self, past: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Zero keys and values (1, G, past, E) of every layer."""
        config = self.model.config
        shape = (1, config.num_key_value_heads, past, config.head_dim)
        zeros = torch.zeros(shape, dtype=torch.bfloat16)
        return [(zeros, zeros)] * config.num_hidden_layers

    @torch.inference_mode()
    def step(self, tokens: int) -> None:
        self.added = tokens
        self.model(
            input_ids=torch.full((1, tokens), TOKEN_ID),
            position_ids=torch.arange(self.past, self.past + tokens)[None],
            past_key_values=self.cache,
            logits_to_keep=1,
        )

    def cut(self) -> None:
        self.cache.crop(-self.added)


class Compiled(Eager):
    """torch.compile of the model, with a cache of fixed size: `past` and the longest step."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.model.forward = torch.compile(self.model.forward, dynamic=False, fullgraph=True)

    def fill(self, past: int) -> None:
        self.cache = StaticCache(config=self.model.config, max_cache_len=past + MAX_STEP)
        self.past = past
        for layer, (keys, values) in enumerate(self.past_of_layers(past)):
            self.cache.update(keys, values, layer)

    def cut(self) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.past)


KINDS = {"eager": Eager, "compiled": Compiled}

if __name__ == "__main__":
    serve(lambda: KINDS[sys.argv[2]](sys.argv[1]), ("transformers", "torch"))
