"""A bundle, opened and checked; every command that takes a bundle uses this class."""

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.bundle.engine_manifest import EngineManifest, read_engine_manifests
from mod_edge.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDING_FILE,
    EMBEDDING_SCALES_FILE,
    TOKENIZER_FILE,
    Manifest,
    check_files,
    read_manifest,
    require_listed,
)
from mod_edge.config import ModelConfig, read_config
from mod_edge.errors import BundleError, CheckpointError, ConfigError, nearest_hint
from mod_edge.plan.kv_budget import (
    KvPlan,
    plan_budget,
    plan_capacity,
    plan_of_text,
    plan_tokens,
    plan_window,
)
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.signature import GraphSignature, bundle_signatures
from mod_edge.plan.targets import TARGETS, Lowering, Target
from mod_edge.plan.tokenizer import read_tokenizer
from mod_edge.profiles import Profile, load_profile, profile_names


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match its manifest; `open_bundle` makes one.

    Attributes:
        folder: of the bundle.
        manifest: of the folder.
        config: the model's.
        tokenizer: the model's, checked against the config's protocol strings.
    """

    folder: Path
    manifest: Manifest
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def lowering(self) -> Lowering:
        """Target, precision and cache size of its graphs."""
        return self.manifest.lowering

    @property
    def target(self) -> Target:
        """The target of its graphs."""
        return TARGETS[self.lowering.target]

    @property
    def is_whole(self) -> bool:
        """Whether it has every decoder layer."""
        return self.manifest.layers == list(range(self.config.text_config.num_hidden_layers))

    @property
    def engines(self) -> list[EngineManifest]:
        """The sets of engines that were built for it; may be empty.

        Raises:
            BundleError: an engine manifest is damaged.
        """
        return read_engine_manifests(self.folder)

    def require_whole(self) -> None:
        """Check that no decoder layer is missing.

        Raises:
            BundleError: decoder layers are missing.
        """
        if not self.is_whole:
            raise BundleError(
                f"bundle {self.folder} has {len(self.manifest.layers)} of "
                f"{self.config.text_config.num_hidden_layers} layers; "
                "export the checkpoint without --layers to run it"
            )

    def signatures(self, graph: str | None = None) -> list[GraphSignature]:
        """Signatures of all graphs in the order of a step, or of the graph of that name.

        Raises:
            ConfigError: there is no such graph; lists the known ones.
        """
        found = bundle_signatures(self.config, self.lowering, self.manifest.layers)
        chosen = [signature for signature in found if graph in (None, signature.name)]
        if not chosen:
            names = [signature.name for signature in found]
            hint = nearest_hint(graph or "", names)
            raise ConfigError(
                f"bundle {self.folder} has no graph {graph!r}{hint}; it has {', '.join(names)}"
            )
        return chosen

    def profile(self, name: str | Path | None = None) -> Profile:
        """The profile of that name or path; None takes the one that the engines were built with.

        Without engines it is the first shipped profile that lists the bundle's target.

        Raises:
            ConfigError: the profile is unknown or ambiguous.
            BundleError: an engine manifest is damaged.
        """
        if name is not None:
            return load_profile(name)
        built_with = sorted({engines.settings.profile for engines in self.engines})
        if not built_with:
            shipped = map(load_profile, profile_names())
            return next(profile for profile in shipped if self.target.name in profile.targets)
        own = [built for built in built_with if built not in profile_names()]
        if own:
            raise ConfigError(
                f"the engines of bundle {self.folder} were built with profile {own[0]!r}, which "
                "does not ship with mod-edge; give its file with --profile "
                f"path/to/{own[0]}.toml"
            )
        profiles = [load_profile(built) for built in built_with]
        # A bundle may have engines for several GPUs; their profiles may differ in that alone.
        if len({replace(profile, name="", compute_capabilities=()) for profile in profiles}) > 1:
            raise ConfigError(
                f"bundle {self.folder} has engines of the profiles {', '.join(built_with)}; "
                "name one with --profile"
            )
        return profiles[0]

    def plan(
        self,
        default_window: str,
        max_new_tokens: int,
        *,
        window: str | None = None,
        kv_budget_mib: float | None = None,
    ) -> KvPlan:
        """The cache size of a stream on this bundle.

        Args:
            default_window: used if neither `window` nor `kv_budget_mib` is given.
            max_new_tokens: longest reply, for which the window leaves room.
            window: seconds of video ("120s") or stream tokens ("4096").
            kv_budget_mib: MiB for all keys and values; alternative to `window`.

        Raises:
            ConfigError: both are given, or one although the graphs have a fixed capacity, or the
                window is too small.
        """
        if window is not None and kv_budget_mib is not None:
            raise ConfigError("got both window and kv_budget, which set the same; give one")
        config, lowering = self.config, self.lowering
        is_asked = window is not None or kv_budget_mib is not None
        if lowering.capacity is not None and is_asked:
            raise ConfigError(
                f"the bundle's graphs are made for a window of {lowering.capacity.dense} tokens; "
                "run without --window and --kv-budget, or export again with another --window"
            )
        least_text = text_minimum(config.stream_config, self.tokenizer, max_new_tokens)
        if lowering.capacity is not None:
            return plan_capacity(config, lowering.capacity, least_text, dtype=lowering.dtype)
        if kv_budget_mib is not None:
            return plan_budget(config, kv_budget_mib, least_text, dtype=lowering.dtype)
        return plan_window(config, window or default_window, least_text, dtype=lowering.dtype)

    def text_plan(
        self,
        default_window: str,
        max_new_tokens: int,
        *,
        window: str | None = None,
        kv_budget_mib: float | None = None,
    ) -> KvPlan:
        """The cache size of a conversation of text alone.

        A window in tokens is tokens of text. In the memory of other windows, and in a budget, MoD
        layers get as many rows as dense ones; but graphs with a fixed capacity and engines, which
        are built for video, keep the rows of `plan`. The arguments and errors are those of `plan`.
        """
        config, dtype = self.config, self.lowering.dtype
        is_of_video = self.lowering.capacity is not None or bool(self.target.compiler)
        asked = default_window if window is None else window
        if not is_of_video and kv_budget_mib is None and asked.strip().isdecimal():
            return plan_tokens(config, int(asked), dtype=dtype)
        plan = self.plan(default_window, max_new_tokens, window=window, kv_budget_mib=kv_budget_mib)
        return plan if is_of_video else plan_of_text(config, plan, dtype=dtype)


def open_bundle(folder: str | Path, *, hash_all: bool = False) -> Bundle:
    """The bundle at `folder`, its files checked against its manifest.

    Args:
        folder: made by `mod-edge export`.
        hash_all: hash every file, not only the small ones.

    Raises:
        BundleError: not a bundle, damaged, with another model's tokenizer, or with weights in a
            form that this version does not have.
        ConfigError: its config.json is invalid.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest, hash_all=hash_all)
    scales = {EMBEDDING_SCALES_FILE} if manifest.lowering.is_quantized else set()
    require_listed(folder, manifest, {CONFIG_FILE, TOKENIZER_FILE, EMBEDDING_FILE, *scales})
    config = read_config(folder / CONFIG_FILE)
    try:
        tokenizer = read_tokenizer(folder / TOKENIZER_FILE, config)
    except CheckpointError as exc:
        raise BundleError(f"{exc}; export the checkpoint again") from exc
    bundle = Bundle(folder, manifest, config, tokenizer)
    graphs = {file for signature in bundle.signatures() for file in signature.files}
    require_listed(folder, manifest, graphs)
    _require_known_forms(bundle)
    return bundle


def _require_known_forms(bundle: Bundle) -> None:
    """Check that graphs hold their weights as this version's lowering does.

    `verify` rounds as the form says, and `run` chooses products by it.
    """
    for signature in bundle.signatures():
        form = bundle.lowering.weight_form(signature.kind)
        weights = bundle.manifest.graphs[signature.name].weights
        if weights is not None and (form is None or weights != form.to_json()):
            raise BundleError(
                f"bundle {bundle.folder}: {signature.file} has weights {weights}, which this "
                f"version of mod-edge does not use for {bundle.lowering.weight_format} on target "
                f"{bundle.target.name}; export the checkpoint again"
            )
