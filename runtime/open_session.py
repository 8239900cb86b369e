"""From a bundle folder to a ready session: check, plan the window, choose the backend."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.bundle.engine_manifest import read_engine_manifests
from mod_edge.bundle.manifest import (
    CONFIG_FILE,
    EMBEDDING_FILE,
    TOKENIZER_FILE,
    Manifest,
    check_files,
    read_manifest,
    require_listed,
)
from mod_edge.config import ModelConfig, read_config
from mod_edge.errors import BundleError, ConfigError
from mod_edge.plan.kv_budget import KvPlan, plan_budget, plan_capacity, plan_window
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import Lowering
from mod_edge.profiles import Profile, load_profile, profile_names
from mod_edge.runtime.backends import BackendChoice, open_runner
from mod_edge.runtime.runner import SessionLimits
from mod_edge.runtime.session import Session, SessionOptions


def open_session(
    bundle: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    checkpoint: str | Path | None = None,
    profile: str | Path | Profile | None = None,
    window: str | None = None,
    kv_budget_mib: float | None = None,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    frames_per_step: int | None = None,
    check_all: bool = False,
) -> Session:
    """A session on the bundle at `bundle`; use it as a context manager.

    Args:
        bundle: the folder that `mod-edge export` made.
        backend: `tensorrt`, `onnx`, `torch` (the reference, needs `checkpoint`), or `auto`, see
            `backends.open_runner`.
        device: where ONNX Runtime computes, `cpu` or `cuda`; `auto` goes by the bundle's target.
        checkpoint: the checkpoint that the bundle was made from, for `torch` only.
        profile: the defaults for what is None below, or their name or TOML path; None takes the
            bundle's own, see `profile_of_bundle`.
        window: seconds of video ("120s") or stream tokens ("4096") to remember.
        kv_budget_mib: instead of `window`, MiB for all keys and values.
        threshold: see `Protocol`; the checkpoint's own where None.
        max_new_tokens: longest reply.
        frames_per_step: see `SessionOptions`.
        check_all: hash every file of the bundle, not only the small ones.

    Raises:
        BundleError: no bundle, a damaged or partial one.
        ConfigError: settings that contradict each other, or a window that is too small.
        BackendError: the backend cannot run here.
    """
    folder = Path(bundle)
    choice = BackendChoice(backend, device, None if checkpoint is None else Path(checkpoint))
    manifest, config, tokenizer = read_bundle(folder, check_all=check_all)
    defaults = profile if isinstance(profile, Profile) else profile_of_bundle(folder, profile)
    stream = config.stream_config
    options = SessionOptions(
        threshold=stream.frame_token_interval_threshold if threshold is None else threshold,
        max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
        frames_per_step=(
            defaults.frames_per_step.opt if frames_per_step is None else frames_per_step
        ),
        max_step_tokens=defaults.max_step_tokens,
        evict_fraction=defaults.evict_fraction,
    )
    least = options.frames_per_step * (config.frame_num_tokens + 1)
    if options.max_step_tokens < least:
        raise ConfigError(
            f"frames_per_step={options.frames_per_step} takes {least} tokens a step, profile "
            f"{defaults.name!r} has max_step_tokens={options.max_step_tokens}; "
            "take fewer frames a step"
        )
    least_text = text_minimum(stream, tokenizer, options.max_new_tokens)
    plan = _plan_cache(
        config, manifest.lowering, least_text, defaults, window=window, kv_budget_mib=kv_budget_mib
    )
    limits = SessionLimits(plan.capacity, options.max_step_tokens, options.frames_per_step)
    runner, reason = open_runner(folder, manifest, config, limits, choice)
    return Session(runner, config, tokenizer, plan, options, backend=f"{runner.name}: {reason}")


def profile_of_bundle(folder: Path, name: str | Path | None) -> Profile:
    """The profile of that name or path, else the one that the bundle's engines were built with.

    A bundle without engines takes `cpu` where it is for a CPU, and else the first shipped profile
    that lists its target.

    Raises:
        BundleError: no bundle at `folder`, or damaged.
        ConfigError: an unknown profile, or several that could be meant.
    """
    if name is not None:
        return load_profile(name)
    target = read_manifest(folder).lowering.target
    built_with = sorted({engines.settings.profile for engines in read_engine_manifests(folder)})
    if not built_with:
        shipped = map(load_profile, profile_names())
        return next(profile for profile in shipped if target in profile.targets)
    own = [built for built in built_with if built not in profile_names()]
    if own:
        raise ConfigError(
            f"the engines of bundle {folder} were built with profile {own[0]!r}, which does not "
            f"ship with mod-edge; give its file with --profile path/to/{own[0]}.toml"
        )
    profiles = [load_profile(built) for built in built_with]
    # Engines for several GPUs may lie in one bundle; a run is the same on all of them.
    if len({replace(profile, name="", compute_capabilities=()) for profile in profiles}) > 1:
        raise ConfigError(
            f"bundle {folder} has engines of the profiles {', '.join(built_with)}; "
            "name one with --profile"
        )
    return profiles[0]


def _plan_cache(
    config: ModelConfig,
    lowering: Lowering,
    least_text: int,
    defaults: Profile,
    *,
    window: str | None,
    kv_budget_mib: float | None,
) -> KvPlan:
    if window is not None and kv_budget_mib is not None:
        raise ConfigError("window and kv_budget are two ways to say the same; give one")
    is_asked = window is not None or kv_budget_mib is not None
    if lowering.capacity is not None and is_asked:
        raise ConfigError(
            f"the bundle's graphs are made for a window of {lowering.capacity.dense} tokens; run "
            "without --window and --kv-budget, or export again with another --window"
        )
    if lowering.capacity is not None:
        return plan_capacity(config, lowering.capacity, least_text, dtype=lowering.dtype)
    if kv_budget_mib is not None:
        return plan_budget(config, kv_budget_mib, least_text, dtype=lowering.dtype)
    return plan_window(config, window or defaults.window, least_text, dtype=lowering.dtype)


def read_bundle(folder: Path, *, check_all: bool) -> tuple[Manifest, ModelConfig, Tokenizer]:
    """A bundle's manifest, config and tokenizer, once its files are checked.

    Args:
        folder: the bundle.
        check_all: hash every file, not only the small ones.

    Raises:
        BundleError: no bundle, a damaged or partial one.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest, hash_all=check_all)
    require_listed(folder, manifest, {CONFIG_FILE, TOKENIZER_FILE, EMBEDDING_FILE})
    config = read_config(folder / CONFIG_FILE)
    num_layers = config.text_config.num_hidden_layers
    if manifest.layers != list(range(num_layers)):
        raise BundleError(
            f"bundle {folder} holds {len(manifest.layers)} of {num_layers} layers; "
            "export the checkpoint without --layers to run it"
        )
    graphs = bundle_signatures(config, manifest.lowering)
    files = {file for graph in graphs for file in graph.files}
    require_listed(folder, manifest, files)
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as exc:  # the library raises bare Exception for every fault
        raise BundleError(
            f"{folder / TOKENIZER_FILE} cannot be read: {exc}; export the checkpoint again"
        ) from exc
    return manifest, config, tokenizer
