"""A bundle opened for judging: every file hashed, whole or with some of its layers."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.bundle.manifest import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    Manifest,
    check_files,
    read_manifest,
)
from mod_edge.config import ModelConfig, read_config
from mod_edge.errors import ConfigError
from mod_edge.plan.signature import GraphSignature, bundle_signatures
from mod_edge.plan.targets import Lowering
from mod_edge.plan.tokenizer import read_tokenizer


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle whose files are all as they were written."""

    folder: Path
    manifest: Manifest
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def lowering(self) -> Lowering:
        """What its graphs were made for."""
        return self.manifest.lowering

    @property
    def is_whole(self) -> bool:
        """Whether every decoder layer is in it."""
        return len(self.manifest.layers) == self.config.text_config.num_hidden_layers

    def signatures(self, graph: str | None) -> list[GraphSignature]:
        """Of all its graphs in the order of a step, or of the one with that name.

        Raises:
            ConfigError: it has no such graph; lists those it has.
        """
        found = bundle_signatures(self.config, self.lowering, self.manifest.layers)
        chosen = [signature for signature in found if graph in (None, signature.name)]
        if not chosen:
            names = [signature.name for signature in found]
            near = get_close_matches(graph or "", names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"bundle {self.folder} has no graph {graph!r}{hint} (it has: {', '.join(names)})"
            )
        return chosen


def open_bundle(folder: Path) -> OpenedBundle:
    """The bundle at `folder`.

    Raises:
        BundleError: no bundle there, or a file is missing or changed.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, hash_all=True)
    config = read_config(folder / CONFIG_FILE)
    return OpenedBundle(folder, manifest, config, read_tokenizer(folder / TOKENIZER_FILE, config))
