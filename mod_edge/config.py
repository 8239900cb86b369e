"""A checkpoint's config.json as frozen dataclasses, checked when it is read.

Field names are those of Hugging Face (`LlamaConfig`, `SiglipVisionConfig`) and, for frames and the
streaming protocol, those of VideoLLM-online's `LiveConfigMixin`. `mod_config` is specific to
mod-edge: the published code packs the same facts into one string, `vision_drop_strategy`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_edge.dataclass_reader import JSON, dataclass_from_dict
from mod_edge.document_parser import parse_json
from mod_edge.errors import ConfigError, nearest_hint, shortened
from mod_edge.unicode_text import lone_surrogate

MODEL_TYPE = "videollm_mod"
INSERTIONS = ("interleaved", "all", "interleaved_deep", "all_deep")
BASELINES = ("early_exit", "layer_skip")
SELECTIONS = ("learned", "uniform", "random")
ROUTER_SCALINGS = ("full", "delta")
CHAT_STRINGS = ("system", "stream_start", "query", "generation", "reply")
DTYPES = ("float32", "bfloat16", "float16")
VISION_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "quick_gelu")
FRAME_RESIZES = ("letterbox", "stretch")
FRAME_RESAMPLES = ("bicubic", "bilinear")
UNTRAINED_PARTS = ("connector", "router")
ROPE_TYPES = ("default", "linear", "llama3")
LLAMA3_ROPE_FIELDS = (
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
# Generous bounds, far beyond published models, that catch a slip in a unit or an exponent.
FRAME_FPS_BOUNDS = (0.001, 1000)
MAX_ROPE_FACTOR = 1e6
MAX_ROPE_THETA = 1e15
MAX_LAYERS = 1000

# "Deep" means after the second layer: the first two always see every token (paper, Table 2).
NUM_SHALLOW_LAYERS = 2

EMBEDDING_WEIGHT = "model.embed_tokens.weight"
HEAD_WEIGHT = "lm_head.weight"


@dataclass(frozen=True)
class RopeScaling:
    """A scaling of RoPE's frequencies, as Hugging Face configs name it.

    Attributes:
        factor: what frequencies are divided by: all of them (`linear`), or the low ones (`llama3`).
        low_freq_factor: for `llama3` alone, as are the next two.
        high_freq_factor: the frequencies that turn more often are kept.
        original_max_position_embeddings: the positions over which turns are counted.
        rope_type: `linear` or `llama3` (Llama 3.1 and later).
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    rope_type: str = "llama3"

    def __post_init__(self) -> None:
        _require_one_of("rope_scaling.rope_type", self.rope_type, ROPE_TYPES[1:])
        _require(
            1 <= self.factor <= MAX_ROPE_FACTOR,
            "rope_scaling.factor",
            self.factor,
            f"1 to {MAX_ROPE_FACTOR:g}",
        )
        is_llama3 = self.rope_type == "llama3"
        wanted = f"{'a number' if is_llama3 else 'none'} with rope_type {self.rope_type}"
        faults = [
            f"rope_scaling.{name}={value!r}, wanted {wanted}"
            for name in LLAMA3_ROPE_FIELDS
            if ((value := getattr(self, name)) is not None) != is_llama3
        ]
        if faults:
            raise ConfigError("; ".join(faults))
        if is_llama3:
            self._check_llama3()

    @property
    def llama3(self) -> tuple[float, float, int]:
        """What `llama3` alone has: the two frequency factors, low first, and the positions."""
        assert self.low_freq_factor is not None
        assert self.high_freq_factor is not None
        assert self.original_max_position_embeddings is not None
        return self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings

    def _check_llama3(self) -> None:
        low, high, num_positions = self.llama3
        _require(
            num_positions >= 1,
            "rope_scaling.original_max_position_embeddings",
            num_positions,
            "at least 1",
        )
        _require(
            0 < low < high,
            "rope_scaling.low_freq_factor",
            low,
            f"above 0 and below high_freq_factor={high}",
        )


@dataclass(frozen=True)
class TextConfig:
    """The decoder: Llama's, with what Qwen2 and Qwen3 add to its attention.

    Attributes:
        attention_bias: the q, k and v projections have biases, the o projection has none (Qwen2).
        qk_norm: each head's query and key pass an RMSNorm before RoPE (Qwen3).
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "text_config")
        _require_few_layers("text_config", self.num_hidden_layers)
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "text_config.num_attention_heads",
            self.num_attention_heads,
            f"a multiple of num_key_value_heads={self.num_key_value_heads}",
        )
        _require(self.head_dim % 2 == 0, "text_config.head_dim", self.head_dim, "even, for RoPE")
        _require(
            1 <= self.rope_theta <= MAX_ROPE_THETA,
            "text_config.rope_theta",
            self.rope_theta,
            f"1 to {MAX_ROPE_THETA:g}",
        )

    @property
    def head_weight(self) -> str:
        """Name of the tensor that the language-model head uses.

        A tied head uses the token embedding; its checkpoint has no `HEAD_WEIGHT`.
        """
        return EMBEDDING_WEIGHT if self.tie_word_embeddings else HEAD_WEIGHT


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP vision tower and how a frame becomes its input.

    Attributes:
        image_size: side of the square input in pixels.
        hidden_act: of all MLPs, one of `VISION_ACTIVATIONS`: GELU approximated with tanh, exact
            GELU, or x * sigmoid(1.702 x).
        image_mean: subtracted from the red, green and blue of 0..1.
        image_std: by which the result is divided.
        frame_resize: one of `FRAME_RESIZES`: `letterbox` keeps the frame's aspect and fills the
            rest of the square with black, as VideoLLM-online does; `stretch` resizes both sides to
            `image_size`, as SigLIP's own processor does.
        frame_resample: its kernel, one of `FRAME_RESAMPLES`, antialiased: SigLIP has bicubic,
            SigLIP 2 bilinear.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    frame_resize: str = "letterbox"
    frame_resample: str = "bicubic"

    def __post_init__(self) -> None:
        _require_positive(self, "vision_config")
        _require_few_layers("vision_config", self.num_hidden_layers)
        _require_one_of("vision_config.hidden_act", self.hidden_act, VISION_ACTIVATIONS)
        _require_one_of("vision_config.frame_resize", self.frame_resize, FRAME_RESIZES)
        _require_one_of("vision_config.frame_resample", self.frame_resample, FRAME_RESAMPLES)
        _require(
            all(0 <= value <= 1 for value in self.image_mean),
            "vision_config.image_mean",
            list(self.image_mean),
            "each 0 to 1, the range of pixels after division by 255",
        )
        _require(
            all(0 < value < math.inf for value in self.image_std),
            "vision_config.image_std",
            list(self.image_std),
            "each above 0",
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "vision_config.hidden_size",
            self.hidden_size,
            f"a multiple of num_attention_heads={self.num_attention_heads}",
        )
        _require(
            self.image_size >= self.patch_size,
            "vision_config.image_size",
            self.image_size,
            f"at least patch_size={self.patch_size}",
        )

    @property
    def grid_size(self) -> int:
        """Patches along one side; leftover pixels are cut off, as in SigLIP."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one frame."""
        return self.grid_size**2


@dataclass(frozen=True)
class MoDConfig:
    """Which layers are MoD layers, how they select tokens, and what the router weight scales.

    The baselines of the paper's comparison are insertions too. Their MoD layers compute no vision
    token, so `keep_ratio`, `selection` and `router_scaling` have no effect. The published code also
    drops the frames' interval tokens there; here they stay, as in every MoD layer, so that the
    compared models differ in vision tokens alone.

    Attributes:
        insertion: which layers are MoD layers, one of `INSERTIONS` (paper, Table 2) or of
            `BASELINES`: `early_exit` (all from `exit_layer` on), `layer_skip` (every second one).
        keep_ratio: share of a frame's tokens that a MoD layer computes, above 0 and up to 1.
        selection: `learned` (the LayerExpert's top k), `uniform` (every n//k-th token) or `random`
            (drawn independently for every frame and layer).
        router_scaling: `full` scales the whole layer output, w*(x + f(x)), as the published code
            does; `delta` scales the branch, x + w*f(x). Only `learned` has a router.
        exit_layer: for `early_exit`, the first layer without vision tokens.
    """

    insertion: str = "interleaved"
    keep_ratio: float = 0.2
    selection: str = "learned"
    router_scaling: str = "full"
    exit_layer: int = NUM_SHALLOW_LAYERS

    def __post_init__(self) -> None:
        _require_one_of("mod_config.insertion", self.insertion, INSERTIONS + BASELINES)
        _require_one_of("mod_config.selection", self.selection, SELECTIONS)
        _require_one_of("mod_config.router_scaling", self.router_scaling, ROUTER_SCALINGS)
        _require(0 < self.keep_ratio <= 1, "mod_config.keep_ratio", self.keep_ratio, "in (0, 1]")
        _require(self.exit_layer >= 1, "mod_config.exit_layer", self.exit_layer, "at least 1")
        _require(
            self.insertion == "early_exit" or self.exit_layer == NUM_SHALLOW_LAYERS,
            "mod_config.exit_layer",
            self.exit_layer,
            f"only with insertion early_exit, not with {self.insertion}",
        )

    @property
    def is_baseline(self) -> bool:
        """Whether MoD layers compute no vision tokens."""
        return self.insertion in BASELINES


@dataclass(frozen=True)
class ChatTemplate:
    """The strings of a conversation; each begins where the one before it ended.

    The defaults are VideoLLM-online's, which are plain text. In other templates some parts are
    control tokens. What people write for `{system}`, `{query}` and `{reply}` is always text.

    Attributes:
        system: the system turn, with `{system}`; opens every conversation.
        stream_start: opens a run of frames.
        query: a user's turn, with `{query}`.
        generation: prompts for the model's turn, which ends with the end token.
        reply: what the model says there, with `{reply}`; nothing for an empty reply.
        control_tokens: the parts of these strings that are control tokens.
    """

    system: str = "{system}\n"
    stream_start: str = "\n["
    query: str = "\nUser: {query}"
    generation: str = "\nAssistant:"
    reply: str = " {reply}"
    control_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        strings = {name: getattr(self, name) for name in CHAT_STRINGS}
        for name, text in strings.items():
            _require_text(f"chat_template.{name}", text)
        for name in ("system", "query", "reply"):
            placeholder = f"{{{name}}}"
            _require(
                strings[name].count(placeholder) == 1,
                f"chat_template.{name}",
                strings[name],
                f"{placeholder} once, for the text of that turn",
            )
        for name in ("stream_start", "generation"):
            _require(strings[name] != "", f"chat_template.{name}", "", "at least one token")
        for token in self.control_tokens:
            _require_text("chat_template.control_tokens", token)
            _require(
                token != "" and any(token in text for text in strings.values()),
                "chat_template.control_tokens",
                token,
                f"control tokens that occur in {', '.join(strings)}",
            )


@dataclass(frozen=True)
class StreamConfig:
    """The streaming protocol's strings, ids and rates (VideoLLM-online, `LiveConfigMixin`).

    Attributes:
        system_prompt: opens every stream, after `bos_token_id`.
        bos_token_id: the first token of a conversation; None if the tokenizer has none, or if the
            chat template's text begins with it.
        eos_token_id: ends a reply, predicted and fed.
        frame_token_interval: between two frames; predicting it means "stay silent". One token, or
            empty: then nothing stands between two frames, and predicting the end token means
            silence (the published one-token model, "live1").
        frame_token_interval_id: its id; None without an interval.
        stream_end: closes the frames; predicting it means "speak". One token.
        frame_token_interval_threshold: the model speaks when P(silent) is below it, 0..1; with 0,
            when the token for speaking is the likeliest.
        frame_fps: frames per second of video that the model sees.
        chat_template: the strings around prompts and replies.
        stop_token_ids: further tokens that end a reply; `eos_token_id` is fed in their place.
    """

    system_prompt: str
    bos_token_id: int | None
    eos_token_id: int
    frame_token_interval: str
    frame_token_interval_id: int | None
    stream_end: str
    stream_end_id: int
    frame_token_interval_threshold: float = 0.725
    frame_fps: float = 2.0
    chat_template: ChatTemplate = dataclasses.field(default_factory=ChatTemplate)
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("system_prompt", "frame_token_interval", "stream_end"):
            _require_text(f"stream_config.{name}", getattr(self, name))
        threshold = self.frame_token_interval_threshold
        _require(
            0 <= threshold <= 1,
            "stream_config.frame_token_interval_threshold",
            threshold,
            "a probability, 0 to 1",
        )
        fps, (least, most) = self.frame_fps, FRAME_FPS_BOUNDS
        _require(least <= fps <= most, "stream_config.frame_fps", fps, f"{least} to {most}")
        _require(
            (self.frame_token_interval_id is None) == (self.frame_token_interval == ""),
            "stream_config.frame_token_interval_id",
            self.frame_token_interval_id,
            f"null if frame_token_interval is empty, else its id (it is "
            f"{self.frame_token_interval!r})",
        )
        silent = (
            "eos_token_id" if self.frame_token_interval_id is None else "frame_token_interval_id"
        )
        _require(
            self.silent_id != self.stream_end_id,
            "stream_config.stream_end_id",
            self.stream_end_id,
            f"a token other than {silent}, or silent and speak are the same",
        )
        decisions = {
            name: getattr(self, name) for name in ("frame_token_interval_id", "stream_end_id")
        }
        ends = {"eos_token_id": (self.eos_token_id,), "stop_token_ids": self.stop_token_ids}
        for field, ids in ends.items():
            same = [name for name, token_id in decisions.items() if token_id in ids]
            _require(
                not same,
                f"stream_config.{field}",
                getattr(self, field),
                f"a token other than {', '.join(same)}: it marks the end of a reply alone",
            )

    @property
    def interval_ids(self) -> tuple[int, ...]:
        """The tokens between two frames: the interval, or none."""
        interval_id = self.frame_token_interval_id
        return () if interval_id is None else (interval_id,)

    @property
    def silent_id(self) -> int:
        """The token whose prediction at a frame means silence: the interval, else the end token."""
        interval_id = self.frame_token_interval_id
        return self.eos_token_id if interval_id is None else interval_id


@dataclass(frozen=True)
class ModelConfig:
    """The whole config.json; `mod_config` None means the full-computation model.

    A frame's tokens are the "CLS" token (`frame_token_cls`) and a grid of `frame_token_pooled`
    cells; at least one of the two.

    `untrained_parts` names the parts whose weights are stand-ins that an import made, because no
    file had them; the names of their tensors contain the part's.
    """

    text_config: TextConfig
    vision_config: VisionConfig
    stream_config: StreamConfig
    mod_config: MoDConfig | None = None
    frame_token_cls: bool = True
    frame_token_pooled: tuple[int, int] | None = (3, 3)
    dtype: str = "float32"
    untrained_parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_one_of("dtype", self.dtype, DTYPES)
        for part in self.untrained_parts:
            _require_one_of("untrained_parts", part, UNTRAINED_PARTS)
        grid, pooled = self.vision_config.grid_size, self.frame_token_pooled
        if pooled is None:
            _require(
                self.frame_token_cls,
                "frame_token_pooled",
                pooled,
                "a grid such as [3, 3]: with frame_token_cls=false a frame has no other tokens",
            )
        else:
            _require(
                len(pooled) == 2 and all(1 <= side <= grid for side in pooled),
                "frame_token_pooled",
                list(pooled),
                f"two sides, each 1 to {grid} (the patches along a side)",
            )
        limit = self.text_config.vocab_size
        for name in (
            "bos_token_id",
            "eos_token_id",
            "frame_token_interval_id",
            "stream_end_id",
            "stop_token_ids",
        ):
            value = getattr(self.stream_config, name)
            ids = value if isinstance(value, tuple) else (value,)
            _require(
                all(token_id is None or 0 <= token_id < limit for token_id in ids),
                f"stream_config.{name}",
                value,
                f"0 to {limit - 1} (vocab_size is {limit})",
            )
        if self.mod_config is not None and self.mod_config.insertion == "early_exit":
            num_layers = self.text_config.num_hidden_layers
            _require(
                self.mod_config.exit_layer < num_layers,
                "mod_config.exit_layer",
                self.mod_config.exit_layer,
                f"below num_hidden_layers={num_layers}, or no layer drops a token",
            )

    @property
    def frame_num_tokens(self) -> int:
        """N: tokens of one frame, the "CLS" token first, then the pooled grid row by row."""
        rows, columns = self.frame_token_pooled or (0, 0)
        return int(self.frame_token_cls) + rows * columns

    @property
    def frame_stride(self) -> int:
        """Tokens from one frame's first to the next frame's: N and the interval, if any."""
        return self.frame_num_tokens + len(self.stream_config.interval_ids)

    @property
    def num_kept(self) -> int:
        """K: tokens of a frame that a MoD layer computes; N without MoD, 0 in the baselines."""
        if self.mod_config is None:
            return self.frame_num_tokens
        if self.mod_config.is_baseline:
            return 0
        # Rounded before the ceiling: 0.28 * 25 is 7.000000000000001 in floating point. A ratio that
        # rounds to 0 tokens still keeps one, as the ceiling would.
        return max(1, math.ceil(round(self.mod_config.keep_ratio * self.frame_num_tokens, 6)))

    @property
    def mod_layers(self) -> tuple[int, ...]:
        """Indices of the MoD layers, ascending; empty in the full-computation model."""
        if self.mod_config is None:
            return ()
        num_layers = self.text_config.num_hidden_layers
        first, step = {
            "interleaved": (1, 2),
            "all": (0, 1),
            "interleaved_deep": (NUM_SHALLOW_LAYERS + 1, 2),
            "all_deep": (NUM_SHALLOW_LAYERS, 1),
            "early_exit": (self.mod_config.exit_layer, 1),
            "layer_skip": (1, 2),
        }[self.mod_config.insertion]
        return tuple(range(first, num_layers, step))

    @property
    def has_router(self) -> bool:
        """Whether MoD layers have a LayerExpert."""
        mod = self.mod_config
        return mod is not None and mod.selection == "learned" and not mod.is_baseline


def config_from_dict(data: dict[str, Any], origin: str = "config.json") -> ModelConfig:
    """The checked config from a parsed config.json.

    Raises:
        ConfigError: another model type; or all unknown and missing fields and wrong types in one
            message, and the values out of range of the sections that have none.
    """
    data = dict(data)
    model_type = data.pop("model_type", None)
    _require(model_type == MODEL_TYPE, f"{origin}: model_type", model_type, MODEL_TYPE)
    text = data.get("text_config")
    if isinstance(text, dict) and isinstance(text.get("rope_scaling"), dict):
        name = f"{origin}: text_config.rope_scaling"
        scaling = _one_spelling_of_rope(text["rope_scaling"], name)
        data["text_config"] = {**text, "rope_scaling": scaling}
    return dataclass_from_dict(ModelConfig, data, origin, syntax=JSON, error=ConfigError)


def _one_spelling_of_rope(scaling: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A config's `rope_scaling` as `RopeScaling` spells it; None for RoPE without scaling.

    Hugging Face configs name the type `rope_type`, older ones `type`, some both; type "default" is
    RoPE without scaling.
    """
    fields = {key: value for key, value in scaling.items() if key != "type"}
    if "type" in scaling:
        fields.setdefault("rope_type", scaling["type"])
    kind = fields.get("rope_type", RopeScaling.rope_type)
    _require(kind in ROPE_TYPES, f"{name}.rope_type", kind, f"one of {', '.join(ROPE_TYPES)}")
    legacy = scaling.get("type", kind)
    _require(legacy == kind, f"{name}.type", legacy, f"the same as rope_type={kind!r}")
    if kind != "default":
        return fields
    unused = sorted(fields.keys() - {"rope_type"})
    _require(not unused, name, scaling, f"no {', '.join(unused)} with the rope_type default")
    return None


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The JSON document of `config`; `config_from_dict` reads it back equal."""
    return {"model_type": MODEL_TYPE, **dataclasses.asdict(config)}


def read_config(path: Path) -> ModelConfig:
    """The config in the JSON file at `path`.

    Raises:
        ConfigError: the file is not a JSON object, or `config_from_dict` rejects it.
        OSError: the file cannot be read.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ConfigError(f"{path} is not valid JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path} contains a {type(data).__name__}, wanted one JSON object")
    return config_from_dict(data, str(path))


def config_text(config: ModelConfig) -> str:
    """The text of config.json, with a final newline."""
    return json.dumps(config_to_dict(config), indent=2) + "\n"


def write_config(config: ModelConfig, path: Path) -> None:
    """Write `config` as JSON."""
    path.write_text(config_text(config), encoding="utf-8")


def _require(is_met: bool, name: str, got: object, wanted: str) -> None:
    if not is_met:
        raise ConfigError(f"{name}={shortened(got)}, wanted {wanted}")


def _require_text(name: str, text: str) -> None:
    fault = lone_surrogate(text)
    _require(fault is None, name, text, f"Unicode text, but {fault}")


def _require_one_of(name: str, got: str, known: tuple[str, ...]) -> None:
    _require(got in known, name, got, f"one of {', '.join(known)}{nearest_hint(got, known)}")


def _require_few_layers(section: str, num_layers: int) -> None:
    _require(
        num_layers <= MAX_LAYERS, f"{section}.num_hidden_layers", num_layers, f"1 to {MAX_LAYERS}"
    )


def _require_positive(section: Any, name: str) -> None:
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    faults = [
        f"{name}.{field}={value!r}, wanted above 0"
        for field, value in values.items()
        if type(value) in (int, float) and not (math.isfinite(value) and value > 0)
    ]
    if faults:
        raise ConfigError("; ".join(faults))
