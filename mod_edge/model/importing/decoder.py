"""A Hugging Face decoder as ours: its config.json's fields and its tensors, or why not.

The four architectures of `ARCHITECTURES` compute what `TextConfig` describes, field by field as in
transformers 5.23, whose classes also give the values of omitted fields. What would be computed
otherwise is refused by name and value; what changes no number is on a list; the names of all other
fields are for the report. Tensors have the same names as ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT, TextConfig
from mod_edge.dataclass_reader import JSON, dataclass_from_dict
from mod_edge.errors import (
    ConfigError,
    nearest_hint,
    shortened,
)
from mod_edge.model.importing.source_folder import MISFIT_ADVICE, SourceFolder
from mod_edge.model.layers import MLP, Attention, RMSNorm
from mod_edge.model.tensor_fit import misfits, raise_misfits
from mod_edge.model.weight_files import tied_head_fault

DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}  # of all architectures
DEFAULT_ROPE_THETA = 10000.0
DEFAULT_MAX_WINDOW_LAYERS = 28  # of Qwen2 and Qwen3
FULL_ATTENTION = "full_attention"
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Architecture:
    """A decoder class of transformers.

    Attributes:
        model_type: of its configs.
        attention_bias: q, k and v have biases, always.
        qk_norm: queries and keys are normalised, always.
        has_layer_types: a layer's window follows from `layer_types`, or `use_sliding_window` and
            `max_window_layers`; in the others `sliding_window` alone decides.
        defaults: values of fields that a config.json omits, beside `DEFAULTS`.
    """

    model_type: str
    attention_bias: bool = False
    qk_norm: bool = False
    has_layer_types: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama"),
    "MistralForCausalLM": Architecture(
        "mistral", defaults={"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2",
        attention_bias=True,
        has_layer_types=True,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3",
        qk_norm=True,
        has_layer_types=True,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    ),
}
GEOMETRY = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
READ_FIELDS = frozenset(
    {
        *GEOMETRY,
        *("architectures", "model_type", "num_key_value_heads", "head_dim", "rms_norm_eps"),
        *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
        *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
        *("bos_token_id", "eos_token_id"),  # read with the tokenizer
    }
)
# Fields that change no number of these architectures: training, storage, tools, provenance.
IRRELEVANT_FIELDS = frozenset(
    {
        *("attention_dropout", "hidden_dropout", "dropout", "initializer_range", "use_cache"),
        *("max_position_embeddings", "pretraining_tp", "pad_token_id", "unk_token_id"),
        *("dtype", "torch_dtype", "transformers_version", "_name_or_path", "name_or_path"),
        *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset"),
        *("tokenizer_class", "transformers.js_config", "is_llama_config", "task_specific_params"),
        *("unsloth_version", "unsloth_fixed", "neftune_noise_alpha", "max_sequence_length"),
        *("return_dict", "output_attentions", "output_hidden_states", "problem_type"),
        *("id2label", "label2id", "finetuning_task", "chunk_size_feed_forward", "is_decoder"),
        *("is_encoder_decoder", "begin_suppress_tokens", "suppress_tokens", "prefix"),
        *("router_aux_loss_coef", "output_router_logits", "sep_token_id", "decoder_start_token_id"),
    }
)
# Fields that change what a decoder computes, of these architectures or of their relatives, each
# with the values that change nothing; None and an omitted field never do.
ALTERING_FIELDS: Mapping[str, Sequence[Any]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "scale_emb": (1,),
    "scale_depth": (),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "no_rope_layers": (),
    "no_rope_layer_interval": (),
    "use_mrope": (False,),
    "dual_chunk_attention_config": (),
    "attention_chunk_size": (),
    "attn_temperature_tuning": (False,),
    "clip_qkv": (),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    "add_cross_attention": (False,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "pruned_heads": ({},),
    "auto_map": (),
}
# The fields of each type of RoPE, beside its name and base.
ROPE_FIELDS: Mapping[str, Sequence[str]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def text_config_of(config: Mapping[str, Any], origin: str) -> TextConfig:
    """The decoder that a Hugging Face config.json describes.

    Args:
        config: the parsed config.json.
        origin: its file; messages begin with it.

    Raises:
        ConfigError: another architecture; or all fields at once whose values would be computed
            otherwise, are missing or contradict each other.
    """
    architecture = ARCHITECTURES[_architecture_name(config, origin)]
    rope, faults = _rope_fields(config)
    faults += _altering_faults(config, architecture) + _window_faults(config, architecture)
    faults += [f"no field {name!r}" for name in GEOMETRY if config.get(name) is None]
    fields = {name: config.get(name) for name in GEOMETRY} | {
        "num_key_value_heads": _value(config, architecture, "num_key_value_heads")
        or config.get("num_attention_heads"),
        "head_dim": _value(config, architecture, "head_dim") or _default_head_dim(config),
        "rms_norm_eps": _value(config, architecture, "rms_norm_eps"),
        "tie_word_embeddings": _value(config, architecture, "tie_word_embeddings"),
        "attention_bias": architecture.attention_bias,
        "qk_norm": architecture.qk_norm,
    }
    given = {name: value for name, value in (fields | rope).items() if value is not None}
    if given.keys() >= {*GEOMETRY}:
        try:
            text = dataclass_from_dict(TextConfig, given, origin, syntax=JSON, error=ConfigError)
        except ConfigError as exc:
            faults.append(str(exc).removeprefix(f"{origin}: ").replace("text_config.", ""))
    if faults:
        raise ConfigError(f"{origin}: {'; '.join(faults)}")
    return text


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Names of the config's fields that are on none of this module's lists, sorted.

    transformers' classes of these architectures do not read them either.
    """
    known = READ_FIELDS | IRRELEVANT_FIELDS | ALTERING_FIELDS.keys()
    return sorted(config.keys() - known)


def decoder_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the decoder, without routers, in file order."""
    size = text.hidden_size
    with torch.device("meta"):
        norms = {name: RMSNorm(size, text.rms_norm_eps) for name in LAYER_NORMS}
        layer = nn.ModuleDict({"self_attn": Attention(text), "mlp": MLP(text), **norms})
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING_WEIGHT: (text.vocab_size, size)}
    for index in range(text.num_hidden_layers):
        for name, parameter in layer.named_parameters():
            shapes[f"model.layers.{index}.{name}"] = tuple(parameter.shape)
    shapes["model.norm.weight"] = (size,)
    if not text.tie_word_embeddings:
        shapes[HEAD_WEIGHT] = (text.vocab_size, size)
    return shapes


def decoder_tensors(source: SourceFolder, text: TextConfig) -> dict[str, str]:
    """The name in the folder's files of each of our decoder's tensors.

    A tied head that was written all the same must be the embedding, and is omitted.

    Raises:
        CheckpointError: all missing, unexpected and misshapen tensors at once.
    """
    shapes, tensors = decoder_shapes(text), source.weights.tensors
    faults = [_missing_fault(name) for name in shapes.keys() - tensors.keys()]
    if text.tie_word_embeddings:
        faults += [fault for fault in [tied_head_fault(tensors)] if fault]
    ignored = {HEAD_WEIGHT} if text.tie_word_embeddings else set()
    faults += misfits(tensors, shapes, ignored.__contains__)
    raise_misfits(source.path, faults, advice=MISFIT_ADVICE)
    return {name: name for name in shapes}


def _missing_fault(name: str) -> str:
    if name != HEAD_WEIGHT:
        return f"no tensor {name!r}"
    return (
        f"no tensor {name!r}, although config.json does not tie it to the embedding "
        "(tie_word_embeddings is false or not there; set it to true if the model has no other head)"
    )


def _architecture_name(config: Mapping[str, Any], origin: str) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    taken = ", ".join(ARCHITECTURES)
    if "vision_config" in config:
        raise ConfigError(
            f"{origin}: {name} is an image-text model, whose connector and prompts are its own; "
            f"give --llm its language model alone{_origin_of(config, 'text_config')} and --vision "
            f"a SigLIP tower{_origin_of(config, 'vision_config')}; language models taken are "
            f"{taken}"
        )
    if not isinstance(name, str) or name not in ARCHITECTURES:
        hint = nearest_hint(str(name), ARCHITECTURES)
        raise ConfigError(f"{origin}: architectures={names!r}, wanted one of {taken}{hint}")
    model_type, wanted = config.get("model_type"), ARCHITECTURES[name].model_type
    if model_type != wanted:
        raise ConfigError(f"{origin}: model_type={model_type!r}, wanted {wanted!r} for {name}")
    return name


def _origin_of(config: Mapping[str, Any], part: str) -> str:
    """Where a part of an image-text model comes from, in brackets, if its config says that."""
    section = config.get(part)
    name = section.get("_name_or_path") if isinstance(section, dict) else None
    return f" (its {part} says {name!r})" if name else ""


def _altering_faults(config: Mapping[str, Any], architecture: Architecture) -> list[str]:
    faults = []
    for name, neutral in ALTERING_FIELDS.items():
        value = config.get(name)
        if value is None or value in neutral:
            continue
        if name == "attention_bias" and architecture.attention_bias:
            continue  # its biases do not depend on the field
        wanted = f"{neutral[0]!r}" if neutral else "null or no such field"
        faults.append(f"{name}={shortened(value)} is not supported, wanted {wanted}")
    return faults


def _window_faults(config: Mapping[str, Any], architecture: Architecture) -> list[str]:
    """What says that some layers attend to the newest tokens alone."""
    types = config.get("layer_types")
    if isinstance(types, list) and types:
        others = sorted({str(each) for each in types} - {FULL_ATTENTION})
        if others:
            return [f"layer_types has {', '.join(others)}, wanted {FULL_ATTENTION} alone"]
        if architecture.has_layer_types:
            return []
    window = config.get("sliding_window", architecture.defaults.get("sliding_window"))
    if window is None:
        return []
    what = f"sliding_window={window!r}"
    if "sliding_window" not in config:
        what += f", which {architecture.model_type} has where config.json does not say"
    if architecture.has_layer_types:
        if not config.get("use_sliding_window"):
            return []
        first = config.get("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)
        num_layers = config.get("num_hidden_layers")
        if isinstance(first, int) and isinstance(num_layers, int) and num_layers <= first:
            return []
        what = f"use_sliding_window=true with max_window_layers={first!r}"
    return [
        f"{what}: attention to a window of the newest tokens is not supported; where your --window "
        "is never longer, set it to null or false in config.json"
    ]


def _rope_fields(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`rope_theta` and `rope_scaling` of `TextConfig`, and faults.

    transformers 5 writes `rope_parameters` with type, base and scaling; earlier ones `rope_theta`
    beside `rope_scaling`, whose type was called `type` at first.
    """
    faults: list[str] = []
    spellings = [name for name in ("rope_parameters", "rope_scaling") if config.get(name)]
    if len(spellings) == 2 and config["rope_parameters"] != config["rope_scaling"]:
        faults.append("rope_parameters and rope_scaling contradict each other, wanted one of them")
    name = spellings[-1] if spellings else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, dict):
        return {}, [f"{name}={shortened(given)}, wanted an object"]
    rope = dict(given)
    theta = rope.pop("rope_theta", None)
    outer = config.get("rope_theta")
    if theta is None:
        theta = DEFAULT_ROPE_THETA if outer is None else outer
    elif outer is not None and outer != theta:
        faults.append(f"rope_theta={outer!r} contradicts {name}.rope_theta={theta!r}")
    kind, legacy = rope.pop("rope_type", None), rope.pop("type", None)
    if None not in (kind, legacy) and kind != legacy:
        faults.append(f"{name}.type={legacy!r} contradicts {name}.rope_type={kind!r}")
    kind = kind or legacy or "default"
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    faults += _rope_type_faults(name, kind, rope)
    if faults or kind == "default":
        return {"rope_theta": theta}, faults
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **rope}}, faults


def _rope_type_faults(name: str, kind: Any, rope: Mapping[str, Any]) -> list[str]:
    known = ", ".join(ROPE_FIELDS)
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        return [f"{name}.rope_type={kind!r} is not supported, wanted one of {known}"]
    return [
        f"{name}.{field}={shortened(value)} is not supported with rope_type {kind!r}"
        for field, value in rope.items()
        if field not in ROPE_FIELDS[kind]
    ]


def _value(config: Mapping[str, Any], architecture: Architecture, name: str) -> Any:
    """The field's value; a null is as good as no field."""
    value = config.get(name)
    if value is None and name not in config:
        value = architecture.defaults.get(name)
    return DEFAULTS.get(name) if value is None else value


def _default_head_dim(config: Mapping[str, Any]) -> int | None:
    size, num_heads = config.get("hidden_size"), config.get("num_attention_heads")
    if type(size) is not int or type(num_heads) is not int or num_heads < 1:
        return None  # a fault that is reported by its own name
    return size // num_heads
