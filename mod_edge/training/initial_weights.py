"""The initial model of a training run: a checkpoint's tensors where they fit, random elsewhere.

Random tensors are normal, biases 0, norms 1. A matrix preserves the scale of its input (deviation
1 / sqrt(inputs)); one that writes into the residual stream is smaller by sqrt(2 L); token
embeddings and routers start at deviation 0.02. GPT-2's 0.02 for all is meant for wide models: at
D = 128 it is a quarter of 1 / sqrt(D), and hardly anything of a frame gets through.

A LayerExpert starts near weight 1 where it scales the whole layer output (`full`): with bias 3 the
kept tokens keep 95 % of their value in each MoD layer. With bias 0, as in the published code, each
MoD layer halves a kept token, while skipped ones pass unchanged.
"""

import math
import re

import torch
from torch import Tensor

from mod_edge.config import ModelConfig
from mod_edge.model.checkpoint import Checkpoint, tensor_shapes
from mod_edge.model.presets import random_tensor, seeded_generator
from mod_edge.model.video_llm import VideoLLM

SMALL_DEVIATION = 0.02
SMALL_PARTS = ("embed_tokens", "lm_head", "router")
ROUTER_BIAS = 3.0


def initial_model(config: ModelConfig, base: Checkpoint | None, seed: int) -> VideoLLM:
    """The model to train, in float32 on the CPU, with gradients off.

    Args:
        config: the model's config.
        base: tensors of equal name and shape are copied from it (a bias only with its
            weight); None copies none.
        seed: seeds the random tensors; each is drawn independently, so that two models with the
            same seed agree in all tensors that both have.
    """
    known = {} if base is None else tensor_shapes(base.config)
    state: dict[str, Tensor] = {}
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        # A bias of the right length means nothing without its weight.
        fits = re.sub(r"\.bias$", ".weight", name)
        if base is not None and known.get(name) == shape and known.get(fits) == shapes[fits]:
            state[name] = base.tensor(name).to(torch.float32)
        else:
            state[name] = initial_tensor(config, name, shape, seed)
    with torch.device("meta"):
        model = VideoLLM(config)
    model.load_weights(state)
    return model.requires_grad_(False)


def initial_tensor(config: ModelConfig, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One float32 tensor to train from; the same for the same seed and name."""
    if name.startswith("vision_model."):  # not trained, so its features must be usable as they are
        return random_tensor(config, name, shape, seed)
    if name.endswith("router.bias"):
        scaling = config.mod_config.router_scaling if config.mod_config else "full"
        return torch.full(shape, ROUTER_BIAS if scaling == "full" else 0.0)
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
    is_small = any(part in name for part in SMALL_PARTS)
    deviation = SMALL_DEVIATION if is_small else shape[1] ** -0.5
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2 * config.text_config.num_hidden_layers)
    return deviation * torch.randn(shape, generator=seeded_generator(seed, name))
