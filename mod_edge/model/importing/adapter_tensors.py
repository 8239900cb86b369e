"""What the tensors of an adapter's file do to its base, and everything about them that cannot be.

A file has two factors for each module that is changed, modules that were trained in full, biases,
single rows of the embedding, and the whole embedding or head where it was changed or resized.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT, TextConfig
from mod_edge.model.importing.adapter_config import EMBEDDING, HEAD, AdapterConfig
from mod_edge.model.importing.connector import connector_shapes
from mod_edge.model.importing.peft_names import ORIGINAL, PEFT_PREFIX, unwrapped_names
from mod_edge.model.importing.routers import router_name
from mod_edge.model.weight_files import WeightFiles, same_data

Shapes = Mapping[str, tuple[int, ...]]
# Names of a module's two factors, and of replaced rows; an adapter's name may stand in them.
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B)(?:\.[^.]+)?\.weight")
EMBEDDING_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>embedding_[AB])(?:\.[^.]+)?")
ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
VOCABULARY = (EMBEDDING_WEIGHT, HEAD_WEIGHT)
ANY = -1  # a dim of any size


@dataclass(frozen=True)
class Factors:
    """Names of a module's two factors in the file; `scale` times their product is added.

    Attributes:
        a: (rank, inputs); of the embedding (rank, V).
        b: (outputs, rank); of the embedding (D, rank).
        scale: alpha / rank, or alpha / sqrt(rank).
    """

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Rows:
    """Name of the tensor in the file whose rows replace those of `token_ids`."""

    name: str
    token_ids: tuple[int, ...]


class AdapterTensors:
    """An adapter's tensors, checked against its config and its base; keys are our names.

    Attributes:
        saved: names in the file of the tensors that replace the base's or are new, without routers.
        routers: names in the file of the routers' tensors.
        factors: of the weights that are changed.
        rows: of the weights with replaced rows.
        vocab_size: rows of embedding and head, with the adapter.
        is_tied: whether embedding and head are one tensor, with the adapter.
        faults: what is wrong, in the file's names; the attributes above hold if it is empty.
    """

    def __init__(
        self, weights: WeightFiles, config: AdapterConfig, text: TextConfig, shapes: Shapes
    ) -> None:
        """Sort and check the file's tensors; `shapes` are those of the base's decoder."""
        self.saved: dict[str, str] = {}
        self.routers: dict[str, str] = {}
        self.factors: dict[str, Factors] = {}
        self.rows: dict[str, Rows] = {}
        self.faults: list[str] = []
        self._stored, self._config, self._text = weights.tensors, config, text
        self._decoder = {**shapes, HEAD_WEIGHT: shapes[EMBEDDING_WEIGHT]}
        self._connector = connector_shapes(ANY, text.hidden_size)  # its input is checked elsewhere
        self._factor_names: dict[str, dict[str, str]] = {}
        self._row_names: dict[str, str] = {}
        self._sort()
        self.vocab_size = self._rows_of_vocabulary()
        self._decoder |= dict.fromkeys(VOCABULARY, (self.vocab_size, text.hidden_size))
        self._check_saved()
        self._check_resized()
        self._check_modules()
        self._check_rows()
        self.is_tied = text.tie_word_embeddings and not self._unties()
        if text.tie_word_embeddings:
            self._share_tied_weights()

    def used(self) -> list[str]:
        """Names in the file of all tensors but peft's copies from before the training."""
        return [name for name in self._stored if ORIGINAL not in name]

    def _sort(self) -> None:
        for their_name in self.used():
            name = their_name.removeprefix(PEFT_PREFIX)
            if match := FACTOR.fullmatch(name) or EMBEDDING_FACTOR.fullmatch(name):
                names = self._factor_names.setdefault(match["module"], {})
                self._note(names, match["part"], their_name)
            elif match := ROWS.fullmatch(name):
                self._note(self._row_names, match["module"], their_name)
            elif router := router_name(their_name):
                self._note(self.routers, router, their_name)
            else:
                self._note_saved(their_name)

    def _note_saved(self, their_name: str) -> None:
        for name in unwrapped_names(their_name):
            if name in self._decoder or name in self._connector:
                self._note(self.saved, name, their_name)
                return
        self.faults.append(f"{their_name!r} is not a tensor of the decoder or the connector")

    def _note(self, names: dict[str, str], key: str, their_name: str) -> None:
        """Note what a tensor is; with bias="all" peft writes a saved bias under two names."""
        other = names.setdefault(key, their_name)
        if other != their_name and not same_data(self._stored[other], self._stored[their_name]):
            self.faults.append(f"{other!r} and {their_name!r} are the same tensor, but differ")

    def _rows_of_vocabulary(self) -> int:
        saved = (self._stored[self.saved[name]] for name in VOCABULARY if name in self.saved)
        sizes = (stored.shape[0] for stored in saved if stored.shape)
        return next(sizes, self._text.vocab_size)

    def _check_saved(self) -> None:
        shapes = {**self._decoder, **self._connector}
        for name, their_name in self.saved.items():
            self._check_shape(their_name, shapes[name])
        for name in shapes:
            if name not in self.saved and (reason := self._reason_to_save(name)):
                self.faults.append(f"no {PEFT_PREFIX + name!r} ({reason})")

    def _reason_to_save(self, name: str) -> str:
        """Why the file should have the tensor `name` in full; "" if it need not."""
        bias = self._config.bias
        if self._config.saves(name):
            return f"modules_to_save={list(self._config.modules_to_save)}"
        if name in self._connector:
            return "it has others of the connector" if self._connector.keys() & self.saved else ""
        module = name.removesuffix(".bias")
        is_trained = bias == "all" or (bias == "lora_only" and self._config.targets(module))
        return f"bias={bias!r}" if module != name and is_trained else ""

    def _check_resized(self) -> None:
        """Check that both of embedding and head are resized, unless they are one tensor."""
        if self.vocab_size == self._text.vocab_size:
            return
        if self._text.tie_word_embeddings and not any(map(self._config.saves, VOCABULARY)):
            return
        for name in VOCABULARY:
            if name not in self.saved:
                (other,) = {*VOCABULARY} - {name}
                self.faults.append(
                    f"no {PEFT_PREFIX + name!r}, but {self.saved[other]!r} has {self.vocab_size} "
                    f"rows (the base has {self._text.vocab_size})"
                )

    def _check_modules(self) -> None:
        matrices = (name for name, shape in self._decoder.items() if len(shape) == 2)
        modules = [name.removesuffix(".weight") for name in matrices]
        for module in modules:
            self._check_module(module, self._factor_names.get(module, {}))
        self.faults += [
            f"{name!r} changes a module that the base does not have"
            for module, names in self._factor_names.items()
            if module not in modules
            for name in names.values()
        ]

    def _check_module(self, module: str, names: Mapping[str, str]) -> None:
        is_target, rank = self._config.targets(module), self._config.rank_of(module)
        if not is_target:
            self.faults += [
                f"{name!r} changes a module that target_modules does not select"
                for name in names.values()
            ]
            return
        outputs, inputs = self._decoder[f"{module}.weight"]
        a, b, ending = "A", "B", ".weight"
        if module == EMBEDDING:
            outputs, inputs = inputs, outputs
            a, b, ending = "embedding_A", "embedding_B", ""
        for part, shape in ((a, (rank, inputs)), (b, (outputs, rank))):
            if part in names:
                self._check_shape(names[part], shape)
            else:
                self.faults.append(f"no {f'{PEFT_PREFIX}{module}.lora_{part}{ending}'!r}")
        self.faults += [
            f"{name!r} is not a factor of this kind of module"
            for part, name in names.items()
            if part not in (a, b)
        ]
        if a in names and b in names:
            scale = self._config.scale_of(module)
            self.factors[f"{module}.weight"] = Factors(names[a], names[b], scale)

    def _check_rows(self) -> None:
        chosen = dict(self._config.token_indices)
        if self._text.tie_word_embeddings:
            head = chosen.pop(HEAD, None)
            if head not in (None, chosen.get(EMBEDDING)):
                self.faults.append(
                    f"trainable_token_indices of {EMBEDDING} and {HEAD} differ, which the base ties"
                )
        for module, token_ids in chosen.items():
            name = self._row_names.get(module)
            if name is None:
                name = f"{PEFT_PREFIX}{module}.token_adapter.trainable_tokens_delta"
                self.faults.append(f"no {name!r} (trainable_token_indices)")
                continue
            self._check_shape(name, (len(token_ids), self._text.hidden_size))
            if max(token_ids, default=0) >= self.vocab_size:
                self.faults.append(
                    f"trainable_token_indices has {max(token_ids)}, wanted less than "
                    f"{self.vocab_size}, the rows of {module}"
                )
            self.rows[f"{module}.weight"] = Rows(name, token_ids)
        self.faults += [
            f"{self._row_names[module]!r} is not in trainable_token_indices"
            for module in self._row_names
            if module not in chosen
        ]

    def _check_shape(self, their_name: str, wanted: tuple[int, ...]) -> None:
        stored = self._stored[their_name]
        is_same = len(stored.shape) == len(wanted) and all(
            size in (ANY, given) for given, size in zip(stored.shape, wanted, strict=True)
        )
        if not is_same:
            shown = ", ".join("any" if size == ANY else str(size) for size in wanted)
            self.faults.append(f"{their_name!r} is {stored}, wanted [{shown}]")

    def _unties(self) -> bool:
        """Whether the adapter changes one of embedding and head, or both differently."""
        changed = [name for name in VOCABULARY if name in self.factors or self._config.saves(name)]
        if changed and self._text.tie_word_embeddings:
            if self._config.ensures_tying:
                self.faults.append(
                    f"ensure_weight_tying=true with changes of {', '.join(changed)}, which is not "
                    "merged"
                )
            if self.rows:
                self.faults.append(
                    f"trainable_token_indices with changes of {', '.join(changed)}, which the base "
                    "ties: that is not merged"
                )
        return bool(changed)

    def _share_tied_weights(self) -> None:
        """Use a saved embedding or head for both, as peft's loading does where they are one.

        Modules in `modules_to_save` are copies of their own.
        """
        shared = [
            self.saved[name]
            for name in VOCABULARY
            if name in self.saved and not self._config.saves(name)
        ]
        if len(shared) == 2 and not same_data(*(self._stored[name] for name in shared)):
            self.faults.append(f"{shared[0]!r} and {shared[1]!r} differ, which the base ties")
        if shared:
            self.saved = dict.fromkeys(VOCABULARY, shared[0]) | self.saved
        if self.is_tied:
            self.saved.pop(HEAD_WEIGHT, None)
