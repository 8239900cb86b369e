"""Random-weight checkpoints of named geometries: `mod-edge init`.

They are for measurements and tests without a trained checkpoint: graphs, memory and speed of a
geometry do not depend on the values of its weights.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mod_edge.bundle.staging import staged_folder
from mod_edge.config import (
    EMBEDDING_WEIGHT,
    MoDConfig,
    ModelConfig,
    RopeScaling,
    TextConfig,
    VisionConfig,
)
from mod_edge.errors import ConfigError, nearest_hint
from mod_edge.model.checkpoint import CHECKPOINT, tensor_shapes
from mod_edge.model.checkpoint_writer import write_checkpoint
from mod_edge.model.shipped import NAME as SHIPPED
from mod_edge.plan.tokenizer import preset_tokenizer, stream_config_of
from mod_edge.progress import OnStep, not_shown

SIGLIP_B_16_224 = VisionConfig(768, 3072, 12, 12, image_size=224, patch_size=16)
SIGLIP_L_16_384 = VisionConfig(1024, 4096, 24, 16, image_size=384, patch_size=16)
VIT_S_16_224 = VisionConfig(384, 1536, 12, 6, image_size=224, patch_size=16)
VIT_TINY_64 = VisionConfig(64, 192, 2, 4, image_size=64, patch_size=16)

# name: (decoder, vision tower, dtype of the published weights)
GEOMETRIES: Mapping[str, tuple[TextConfig, VisionConfig, str]] = {
    # Odd on purpose: three query heads per group, so that a swapped axis shows.
    "tiny": (TextConfig(96, 256, 6, 6, 2, 16, 512), VIT_TINY_64, "float32"),
    "135m": (  # SmolLM2-135M
        TextConfig(576, 1536, 30, 9, 3, 64, 49152, rope_theta=100000.0, tie_word_embeddings=True),
        VIT_S_16_224,
        "float32",
    ),
    "1b": (  # Llama-3.2-1B
        TextConfig(
            *(2048, 8192, 16, 32, 8, 64, 128256),
            rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
            tie_word_embeddings=True,
        ),
        SIGLIP_B_16_224,
        "bfloat16",
    ),
    "8b": (  # Llama-3-8B, the paper's
        TextConfig(4096, 14336, 32, 32, 8, 128, 128256),
        SIGLIP_L_16_384,
        "bfloat16",
    ),
}

# Scales of the random weights, chosen on the tiny preset so that both decisions occur at frames and
# replies end: see `_protocol_rows`.
BRANCH_GAIN = 2.0
ROUTER_GAIN = 0.3
NUM_TINY_LAYERS = 6
FRAME_BIAS = 3.0
PROTOCOL_GAIN = 6.0
EOS_GAIN = 3.0


def preset_config(name: str) -> ModelConfig:
    """The config of the preset `name` (a key of `GEOMETRIES`), MoD interleaved with r = 0.2."""
    text, vision, dtype = GEOMETRIES[name]
    stream = stream_config_of(preset_tokenizer(text.vocab_size))
    return ModelConfig(text, vision, stream, MoDConfig(), dtype=dtype)


def init_checkpoint(
    preset: str,
    folder: Path,
    *,
    seed: int = 0,
    force: bool = False,
    on_progress: OnStep = not_shown,
) -> int:
    """Write the checkpoint of a preset with random weights; the folder appears whole or not at all.

    Args:
        preset: a key of `GEOMETRIES`.
        folder: the folder to write.
        seed: of all weights.
        force: replace `folder` if it exists.
        on_progress: called with the part that is written, the bytes done and the total bytes.

    Returns:
        Bytes of weights.

    Raises:
        ConfigError: an unknown preset, or `folder` exists and `force` is not given.
    """
    if preset not in GEOMETRIES:
        known = (SHIPPED, *GEOMETRIES)
        hint = nearest_hint(preset, known)
        raise ConfigError(f"preset={preset!r}, wanted one of {', '.join(known)}{hint}")
    config = preset_config(preset)
    dtype: torch.dtype = getattr(torch, config.dtype)
    total = sum(map(math.prod, tensor_shapes(config).values())) * dtype.itemsize
    done = 0

    def on_bytes(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress("weights", done, total)

    with staged_folder(folder, kind=CHECKPOINT, force=force) as staging:
        write_random_checkpoint(config, staging, seed, on_bytes=on_bytes)
    return total


def write_random_checkpoint(
    config: ModelConfig,
    folder: Path,
    seed: int,
    *,
    on_bytes: Callable[[int], None] = lambda _size_bytes: None,
) -> None:
    """Write a checkpoint of `config` with random weights into `folder`.

    Args:
        config: any config whose protocol strings are the preset tokenizer's.
        folder: exists and is empty.
        seed: each tensor has its own generator, seeded by this and the tensor's name.
        on_bytes: called with the size of every tensor as it is written.
    """
    tokenizer = preset_tokenizer(config.text_config.vocab_size)
    shapes = tensor_shapes(config)

    def tensor_of(name: str) -> Tensor:
        return random_tensor(config, name, shapes[name], seed)

    write_checkpoint(folder, config, tokenizer, tensor_of, on_bytes=on_bytes)


def random_tensor(config: ModelConfig, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One float32 tensor of a random checkpoint; the same for the same seed and name."""
    generator = seeded_generator(seed, name)
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        bias = 0.02 * noise
        return bias + FRAME_BIAS * _frame_direction(config, seed) if "connector.2" in name else bias
    if len(shape) == 1:
        return 1 + 0.1 * noise  # norms, not all ones: swapped norms must show
    if name == config.text_config.head_weight:
        return _protocol_rows(config, noise / math.sqrt(shape[1]), seed)
    if name == EMBEDDING_WEIGHT:
        return noise
    fan_in = math.prod(shape[1:])
    return noise * (_gain(name, config.text_config.num_hidden_layers) / math.sqrt(fan_in))


def _gain(name: str, num_layers: int) -> float:
    if "router" in name:
        return ROUTER_GAIN
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        # Keeps the sum that all layers add to the residual stream the same for any depth.
        return BRANCH_GAIN * math.sqrt(NUM_TINY_LAYERS / num_layers)
    return BRANCH_GAIN if name.startswith("model.layers") else 1.0


def _protocol_rows(config: ModelConfig, head: Tensor, seed: int) -> Tensor:
    """`head` (V, D) biased so that frames get a decision and replies end.

    The connector's bias adds one direction to every frame token. The silent and the speak row share
    this direction, so that one of the two wins at frames, decided by the rest of the token. The end
    token's row is longer than others, so that it sometimes wins; as the silent token it already is.
    """
    stream = config.stream_config
    direction = _frame_direction(config, seed)
    for token_id in (stream.silent_id, stream.stream_end_id):
        head[token_id] = PROTOCOL_GAIN * head[token_id] + direction / direction.norm()
    if stream.eos_token_id != stream.silent_id:
        head[stream.eos_token_id] *= EOS_GAIN
    return head


def _frame_direction(config: ModelConfig, seed: int) -> Tensor:
    return torch.randn(
        config.text_config.hidden_size, generator=seeded_generator(seed, "frame direction")
    )


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """The generator of one tensor, which makes it independent of the others."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
