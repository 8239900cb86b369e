"""Folders of small models with random weights, as transformers writes them."""

import json
import zlib

import torch

from tests.chat_folders import chat_tokenizer, judge_of

VOCAB_SIZE = 640  # of the embedding; the tokenizers have fewer tokens
LLM_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 80,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
VISION_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}


def write_llm(
    folder,
    architecture="Llama",
    *,
    dtype=torch.float32,
    template="chatml",
    max_shard_size="5GB",
    **fields,
):
    """A decoder with its tokenizer in `folder`; returns the folder."""
    import transformers

    tokenizer = chat_tokenizer(template)
    judge = judge_of(tokenizer, template)
    ids = {"bos_token_id": judge.bos_token_id, "eos_token_id": judge.eos_token_id}
    config = getattr(transformers, f"{architecture}Config")(**(LLM_SIZES | ids | fields))
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    randomise(model).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    judge.save_pretrained(folder)
    return folder


def write_vision(folder, *, dtype=torch.float32, **fields):
    """A SigLIP tower with its image processor in `folder`; returns the folder."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    sizes = VISION_SIZES | fields
    model = SiglipVisionModel(SiglipVisionConfig(**sizes))
    randomise(model).to(dtype).save_pretrained(folder)
    side = sizes["image_size"]
    SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def randomise(model):
    """Random norms and biases too, where transformers starts with 1 and 0; each by its name."""
    for name, parameter in model.requires_grad_(False).eval().named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(0.3 * noise + (not name.endswith("bias")))
        elif name.endswith("embed_tokens.weight"):
            parameter.copy_(0.2 * noise)  # or a tied head repeats its input
        else:
            parameter.copy_(1.4 * noise / parameter[0].numel() ** 0.5)
    return model


def change_config(folder, change, name="config.json"):
    """Replace a JSON file of `folder` by what `change` makes of it, in place or as a new object."""
    path = folder / name
    document = json.loads(path.read_text())
    path.write_text(json.dumps(change(document) or document))
