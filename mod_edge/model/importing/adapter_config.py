"""peft's adapter_config.json: which modules an adapter changes, and by how much.

Only plain LoRA is merged. Its fields are honoured by peft's own matching rules (peft 0.21,
`peft.utils.other` and `peft.tuners.tuners_utils`). Every other field must be off, so that a variant
that computes something else (DoRA, aLoRA, ...) is refused by name, also one newer than this file.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT
from mod_edge.errors import CheckpointError, ConfigError, shortened
from mod_edge.model.importing.source_folder import ADAPTER_CONFIG_FILE, read_document

ALL_LINEAR = "all-linear"
# Initial values that leave the base's weights as they are. The others (pissa, olora, corda, loftq,
# lora_ga) subtract from them, so that the trained factors fit the changed base alone.
PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
BIASES = ("none", "lora_only", "all")
MERGE_ADVICE = (
    "merge the adapter with peft where it can (merge_and_unload, save_pretrained) and import the "
    "merged model"
)
# Fields with no effect on the merged weights: names, training, and settings of what must be off.
WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
        *("task_type", "lora_dropout", "corda_config", "eva_config", "loftq_config"),
        *("lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config"),
    }
)
HONOURED = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "trainable_token_indices", "bias", "init_lora_weights"),
        "ensure_weight_tying",
    }
)
# Regular expressions that peft puts a field's text into, as it is.
SAVED_FORM = r"(^|.*\.){}($|\..*)"
PATTERN_FORM = r"(.*\.)?({})$"
LAYER_FORM = r"(?:^|.*?\.){}\.(?P<layer>\d+)\."
ANY_LAYER = r".*?\.[^.]*\.(?P<layer>\d+)\."
EMBEDDING, HEAD = (name.removesuffix(".weight") for name in (EMBEDDING_WEIGHT, HEAD_WEIGHT))

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that decide what is merged; modules are named as in the base, without a prefix.

    Attributes:
        rank: of the two factors, unless `rank_pattern` has another one for the module.
        alpha: the update is scaled by alpha / rank, or alpha / sqrt(rank) with `use_rslora`.
        target_modules: a regular expression, or names that end the modules' names.
        exclude_modules: likewise, and never changed.
        layers_to_transform: indices of the only layers that are changed; empty means all.
        layers_pattern: what the list of layers may be called; empty means anything.
        modules_to_save: ends of the names of modules that were trained in full.
        token_indices: rows of the embedding (or head) that were trained, by module.
        bias: which biases were trained, one of `BIASES`.
        ensures_tying: whether changes of a tied embedding or head are made in both.
        base_name: what the base was called when the adapter was trained.
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    token_indices: Mapping[str, tuple[int, ...]]
    bias: str
    ensures_tying: bool
    base_name: str | None

    def rank_of(self, module: str) -> int:
        """The rank of a module's two factors."""
        return int(_pattern_value(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of a module's two factors is multiplied by."""
        alpha, rank = _pattern_value(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether peft would give `module` two factors (`check_target_module_exists`)."""
        if self._excludes(module):
            return False
        if self.target_modules == ALL_LINEAR:
            return module not in (EMBEDDING, HEAD)
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, module) is not None
        if module in self.target_modules:
            return True
        return _ends_with(module, self.target_modules) and self._transforms_layer_of(module)

    def saves(self, name: str) -> bool:
        """Whether a tensor belongs to a module that was trained in full (peft's `_set_trainable`).

        peft compares the ends of the names without their dots: "norm" saves `input_layernorm` too.
        """
        parts = name.split(".")
        modules = [".".join(parts[:end]) for end in range(1, len(parts))]
        return any(module.endswith(self.modules_to_save) for module in modules)

    def _excludes(self, module: str) -> bool:
        excluded = self.exclude_modules
        if isinstance(excluded, str):
            is_excluded = re.fullmatch(excluded, module) is not None
        else:
            is_excluded = module in excluded or _ends_with(module, excluded)
        saved = (re.match(SAVED_FORM.format(each), module) for each in self.modules_to_save)
        return is_excluded or any(saved)

    def _transforms_layer_of(self, module: str) -> bool:
        if not self.layers_to_transform:
            return True
        patterns = [LAYER_FORM.format(each) for each in self.layers_pattern] or [ANY_LAYER]
        matches = (re.match(pattern, module) for pattern in patterns)
        first = next((match for match in matches if match), None)
        return first is not None and int(first["layer"]) in self.layers_to_transform


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config of the adapter in `folder`.

    Raises:
        CheckpointError: `folder` is not an adapter of peft, or the file cannot be read.
        ConfigError: names everything in the file that is not merged, or not understood.
    """
    path = folder / ADAPTER_CONFIG_FILE
    reading = _Reading(_document(folder))
    peft_type = reading.data.get("peft_type")
    if peft_type != "LORA":
        raise ConfigError(
            f"{path}: peft_type={shortened(peft_type)}, wanted 'LORA': no other is merged; "
            f"{MERGE_ADVICE}"
        )
    config = reading.config()
    if reading.faults:
        raise ConfigError(f"{path}: {'; '.join(reading.faults)}; {MERGE_ADVICE}")
    return config


def _document(folder: Path) -> dict[str, Any]:
    document = read_document(folder, ADAPTER_CONFIG_FILE)
    if document is None:
        fault = f"no {ADAPTER_CONFIG_FILE}" if folder.exists() else "no such folder"
        raise CheckpointError(
            f"{folder} is not an adapter ({fault}); give the folder that peft's save_pretrained "
            "wrote"
        )
    return document


class _Reading:
    """Reads fields and collects faults; null and a missing field mean peft's default."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.faults: list[str] = []

    def config(self) -> AdapterConfig:
        """The config; meaningless if there are faults."""
        self._refuse_what_is_not_merged()
        layers, targets = self._layers(), self._modules("target_modules", None)
        if layers and isinstance(targets, str):
            self.faults.append(
                f"layers_to_transform={list(layers)} with target_modules={shortened(targets)}, "
                "wanted a list of target_modules"
            )
        return AdapterConfig(
            rank=self._value("r", None, _is_count, "a whole number of at least 1"),
            alpha=self._value("lora_alpha", None, _is_number, "a number"),
            use_rslora=self._value("use_rslora", False, _is_bool, "true or false"),
            rank_pattern=self._pattern("rank_pattern", _is_count, "ranks of at least 1"),
            alpha_pattern=self._pattern("alpha_pattern", _is_number, "numbers"),
            target_modules=targets,
            exclude_modules=self._modules("exclude_modules", ()),
            layers_to_transform=layers,
            layers_pattern=self._names("layers_pattern", LAYER_FORM),
            modules_to_save=self._names("modules_to_save", SAVED_FORM),
            token_indices=self._token_indices(),
            bias=self._value("bias", "none", BIASES.__contains__, f"one of {', '.join(BIASES)}"),
            ensures_tying=self._value("ensure_weight_tying", False, _is_bool, "true or false"),
            base_name=self._base_name(),
        )

    def _refuse_what_is_not_merged(self) -> None:
        for name, value in self.data.items():
            if name not in HONOURED | WITHOUT_EFFECT and value not in (None, False, "", [], {}):
                self.faults.append(f"{name}={shortened(value)} is not merged")
        init = self.data.get("init_lora_weights", True)
        if init not in (None, *PLAIN_INITS):
            self.faults.append(
                f"init_lora_weights={shortened(init)} changes the base's weights before training, "
                "wanted true; save the adapter again with peft's "
                "path_initial_model_for_weight_conversion"
            )

    def _value(self, name: str, default: Any, is_valid: Check, wanted: str) -> Any:
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if not is_valid(value):
            self.faults.append(f"{name}={shortened(value)}, wanted {wanted}")
            return default
        return value

    def _pattern(self, name: str, is_valid: Check, wanted: str) -> Mapping[str, Any]:
        def is_pattern(value: Any) -> bool:
            return isinstance(value, dict) and all(map(is_valid, value.values()))

        pattern: dict[str, Any] = self._value(name, {}, is_pattern, f"an object of {wanted}")
        self._require_expressions(name, pattern, PATTERN_FORM)
        return pattern

    def _modules(self, name: str, default: Any) -> str | tuple[str, ...]:
        wanted = "a list of names, or a regular expression"
        value = self._value(name, default, _is_text_or_texts, wanted)
        if isinstance(value, str):
            if value.lower() == ALL_LINEAR:
                return ALL_LINEAR
            self._require_expressions(name, [value], "{}")
            return value
        return tuple(value or ())

    def _names(self, name: str, form: str) -> tuple[str, ...]:
        value = self._value(name, [], _is_text_or_texts, "a list of names")
        names = (value,) if isinstance(value, str) else tuple(value)
        self._require_expressions(name, names, form)
        return names

    def _layers(self) -> tuple[int, ...]:
        def is_valid(value: Any) -> bool:
            return _is_index(value) or _is_indices(value)

        value = self._value("layers_to_transform", [], is_valid, "layers' indices")
        return (value,) if isinstance(value, int) else tuple(value)

    def _token_indices(self) -> Mapping[str, tuple[int, ...]]:
        def is_valid(value: Any) -> bool:
            lists = value.values() if isinstance(value, dict) else [value]
            return all(_is_indices(ids) and len(set(ids)) == len(ids) for ids in lists)

        name = "trainable_token_indices"
        value = self._value(name, {}, is_valid, "distinct token ids, or an object of them")
        by_name = value if isinstance(value, dict) else {EMBEDDING: value}
        known = {ending: module for module in (EMBEDDING, HEAD) for ending in _endings(module)}
        if unknown := sorted(by_name.keys() - known.keys()):
            self.faults.append(f"{name} of {', '.join(unknown)}, wanted {EMBEDDING} or {HEAD}")
        return {known.get(each, each): tuple(ids) for each, ids in by_name.items()}

    def _base_name(self) -> str | None:
        name = self.data.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def _require_expressions(self, name: str, expressions: Iterable[str], form: str) -> None:
        for expression in expressions:
            try:
                re.compile(form.format(expression))
            except (re.error, RecursionError, OverflowError) as exc:
                self.faults.append(f"{name}: {expression!r} is not a regular expression ({exc})")


def _pattern_value(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first expression that ends `module`'s name (peft's `get_pattern_key`)."""
    for expression, value in pattern.items():
        if re.match(PATTERN_FORM.format(expression), module):
            return value
    return default


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module.endswith(f".{name}") for name in names)


def _endings(module: str) -> list[str]:
    """A module's name, and its ends that begin after a dot."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_index, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text_or_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(each, str) for each in texts)
