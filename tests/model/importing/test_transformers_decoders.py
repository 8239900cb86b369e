"""Published decoders, judged by transformers: the same weights give the same logits and text.

transformers writes each folder, sharded, and computes it. Ours are the reference with the tensors
of that folder, and its exported graphs in ONNX Runtime, both fed a prompt and then their own text.
"""

import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from mod_edge.bundle.bundle import open_bundle
from mod_edge.config import ModelConfig
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.model.checkpoint import Checkpoint, tensor_shapes
from mod_edge.model.checkpoint_writer import write_checkpoint
from mod_edge.model.importing.decoder import decoder_tensors, text_config_of
from mod_edge.model.importing.source_folder import SourceFolder
from mod_edge.model.presets import VIT_TINY_64, preset_config, random_tensor
from mod_edge.plan.graph_kind import HEAD, VISION
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import step_layout
from mod_edge.plan.targets import TARGETS, Lowering
from mod_edge.plan.tokenizer import preset_tokenizer, stream_config_of
from mod_edge.runtime.cpu.onnx_model import OnnxModel
from mod_edge.runtime.loaded_model import StreamLimits
from tests.export.topologies import read_topologies

pytestmark = pytest.mark.numeric

# Relative to the largest logit, on x86-64: measured 2.3e-6 at most, of reference and graphs alike.
# Biases of q, k or v left out give 0.3, norms after RoPE 0.3, no norms 0.8, no RoPE scaling 0.7.
RTOL = 1e-5
# By which each token of the text leads the next likely one, so that rounding cannot change it.
MIN_LEAD = 1e-3
SEED = 47  # of weights whose text leads by that and is not a loop

PROMPT = (7, 300, 41, 5, 511, 96, 97, 300, 12, 64, 201)
NUM_NEW = 21
NUM_TOKENS = len(PROMPT) + NUM_NEW
LIMITS = StreamLimits(Rows(96, 96), NUM_TOKENS, NUM_TOKENS)

SIZES = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
# One key/value head, and heads that are not hidden_size / num_attention_heads wide.
ONE_KEY_HEAD = {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 80}
WIDE_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 24}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # short enough to use all three ranges
}

DECODERS = {
    # transformers wants heads that divide hidden_size here, and here alone.
    "llama": ("Llama", ONE_KEY_HEAD | {"hidden_size": 80}),
    "llama, linear rope, tied": (
        "Llama",
        WIDE_HEADS | {"rope_parameters": LINEAR, "tie_word_embeddings": True},
    ),
    "llama, llama3 rope": ("Llama", WIDE_HEADS | {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", ONE_KEY_HEAD | {"sliding_window": None}),
    "qwen2": ("Qwen2", WIDE_HEADS),
    "qwen2, one key head, tied": ("Qwen2", ONE_KEY_HEAD | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", ONE_KEY_HEAD),
    "qwen3, wide heads, tied": (
        "Qwen3",
        WIDE_HEADS | {"tie_word_embeddings": True, "rope_parameters": LINEAR},
    ),
}


@dataclass(frozen=True)
class Published:
    """What transformers makes of a decoder, and the checkpoint of the folder that it wrote."""

    ids: list
    logits: torch.Tensor
    checkpoint: Checkpoint


@pytest.fixture(scope="module")
def shared_topologies(tiny_bundle):
    """By kind, vision and head of this width: the same for every decoder and, in fp32, dialect."""
    topologies = read_topologies(tiny_bundle, preset_config("tiny"))
    return {kind: topologies[kind] for kind in (VISION, HEAD)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """`published(name)`: one of `DECODERS`, made once (0.5 s)."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = publish(*DECODERS[name], tmp_path_factory.mktemp("published"))
        return made[name]

    return make


def publish(architecture, fields, folder):
    model = random_decoder(architecture, fields)
    model.save_pretrained(folder / "theirs", max_shard_size="300KB")
    ids = model.generate(torch.tensor([PROMPT]), max_new_tokens=NUM_NEW, do_sample=False)
    with torch.inference_mode():
        logits = model(ids).logits[0]
    first, second = logits[len(PROMPT) - 1 : -1].topk(2).values.T
    assert (first - second).min() >= MIN_LEAD * logits.abs().max()
    assert len(ids[0, len(PROMPT) :].unique()) > NUM_NEW / 2
    return Published(ids[0].tolist(), logits, checkpoint_of(folder / "theirs", folder / "ours"))


def random_decoder(architecture, fields):
    """The decoder with random norms and biases too, where transformers starts with 1 and 0."""
    config = getattr(transformers, f"{architecture}Config")(
        **(SIZES | fields), bos_token_id=None, eos_token_id=None, attn_implementation="eager"
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    for name, parameter in model.requires_grad_(False).named_parameters():
        generator = torch.Generator().manual_seed(SEED + zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(0.5 * noise if name.endswith("bias") else 1 + 0.3 * noise)
        elif name.endswith("embed_tokens.weight"):
            parameter.copy_(0.2 * noise)  # or a tied head repeats its input
        else:
            parameter.copy_(1.4 * noise / parameter.shape[1] ** 0.5)
    return model


def checkpoint_of(theirs, ours):
    """Our checkpoint with the decoder of the folder `theirs`, without MoD."""
    source = SourceFolder(theirs)
    text = text_config_of(source.config, "config.json")
    tensors = decoder_tensors(source, text)
    assert len(source.weights.files) > 1
    tokenizer = preset_tokenizer(text.vocab_size)
    config = ModelConfig(text, VIT_TINY_64, stream_config_of(tokenizer))
    shapes = tensor_shapes(config)

    def tensor_of(name):
        if name in tensors:
            return source.weights.read(tensors[name])
        return random_tensor(config, name, shapes[name], seed=0)

    ours.mkdir()
    write_checkpoint(ours, config, tokenizer, tensor_of)
    return Checkpoint(ours)


def greedy_text(step):
    """All ids, and their logits (T, V), of the prompt and what `step` makes of it.

    `step(ids, position)` returns the logits (len(ids), V) of the next tokens.
    """
    ids, logits = list(PROMPT), [step(PROMPT, 0)]
    for _ in range(NUM_NEW):
        ids.append(int(logits[-1][-1].argmax()))
        logits.append(step(ids[-1:], len(ids) - 1))
    return ids, np.concatenate(logits)


def reference_step(model, caches, ids, position):
    layout = step_layout((len(ids),), model.config.frame_num_tokens, model.config.num_kept)
    positions = torch.arange(position, position + len(ids))
    embeds = model.model.embed_tokens(torch.tensor(ids))
    return model.logits(model.step(embeds, layout, positions, caches).hidden).numpy()


def graphs_step(config, stream, ids, position):
    layout = step_layout((len(ids),), config.frame_num_tokens, config.num_kept)
    stream.step(layout, ids, None, position=position, past=Rows(position, position))
    return stream.logits(range(len(ids))).copy()


def require_same(theirs, ids, logits):
    assert ids == theirs.ids
    error = np.abs(logits - theirs.logits.numpy()).max() / theirs.logits.abs().max()
    assert float(error) <= RTOL


@pytest.mark.parametrize("name", DECODERS)
def test_the_reference_gives_the_logits_and_the_text_of_transformers(published, name):
    theirs = published(name)
    model = theirs.checkpoint.load_model()
    require_same(theirs, *greedy_text(partial(reference_step, model, model.empty_caches())))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("llama, llama3 rope", "cpu"),
        ("qwen2, one key head, tied", "cpu"),
        ("qwen3", "cuda"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("llama, linear rope, tied", "cuda"),
                ("mistral", "cpu"),
                ("qwen2", "cuda"),
                ("qwen3, wide heads, tied", "cpu"),
            )
        ),
    ],
)
def test_exported_graphs_give_the_logits_and_the_text_of_transformers(
    published, shared_topologies, tmp_path, monkeypatch, name, target
):
    theirs = published(name)
    trace = bundle_module.trace
    monkeypatch.setattr(
        bundle_module,
        "trace",
        lambda config, signature, *args: (
            shared_topologies.get(signature.kind) or trace(config, signature, *args)
        ),
    )
    capacity = LIMITS.capacity if TARGETS[target].dialect == "in_place" else None
    lowering = Lowering(target, "fp32", capacity)
    export_bundle(theirs.checkpoint, tmp_path / "bundle", lowering=lowering)
    bundle = open_bundle(tmp_path / "bundle")
    with OnnxModel(bundle, LIMITS) as model, model.open_stream() as stream:
        require_same(theirs, *greedy_text(partial(graphs_step, bundle.config, stream)))
