"""From a bundle folder to a ready session: check, plan the window, choose the backend."""

from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.config import ModelConfig, read_config
from mod_edge.errors import BackendError, BundleError, ConfigError
from mod_edge.kv_budget import KvPlan, plan_budget, plan_window
from mod_edge.manifest import (
    CONFIG_FILE,
    EMBEDDING_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Manifest,
    check_files,
    read_manifest,
)
from mod_edge.profiles import load_profile
from mod_edge.runtime.protocol import Protocol
from mod_edge.runtime.runner import Runner
from mod_edge.runtime.session import Session, SessionOptions
from mod_edge.signature import bundle_signatures
from mod_edge.targets import CPU_FP32

BACKENDS = ("auto", "onnx", "torch")
# Text tokens that a window always leaves room for, beside the system prompt and one reply: an
# instruction of some sentences. Longer ones are refused when they are asked, with the numbers.
QUERY_ALLOWANCE = 64


def open_session(
    bundle: str | Path,
    *,
    backend: str = "auto",
    checkpoint: str | Path | None = None,
    profile: str = "cpu",
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
        backend: `onnx`, `torch` (the reference, needs `checkpoint`), or `auto`: the best that is
            there, today `onnx`.
        checkpoint: the checkpoint that the bundle was made from, for `torch` only.
        profile: name or TOML path of the defaults for what is None below.
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
    manifest, config, tokenizer = _read_bundle(folder, check_all=check_all)
    defaults = load_profile(profile)
    stream = config.stream_config
    options = SessionOptions(
        threshold=stream.frame_token_interval_threshold if threshold is None else threshold,
        max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
        frames_per_step=defaults.frames_per_step if frames_per_step is None else frames_per_step,
        max_step_tokens=defaults.max_step_tokens,
        evict_fraction=defaults.evict_fraction,
    )
    least = options.frames_per_step * (config.frame_num_tokens + 1)
    if options.max_step_tokens < least:
        raise ConfigError(
            f"frames_per_step={options.frames_per_step} takes {least} tokens a step, profile "
            f"{profile!r} has max_step_tokens={options.max_step_tokens}; take fewer frames a step"
        )
    opening = len(Protocol(stream, tokenizer, options.threshold).opening_ids())
    text_minimum = opening + QUERY_ALLOWANCE + options.max_new_tokens
    if window is not None and kv_budget_mib is not None:
        raise ConfigError("window and kv_budget are two ways to say the same; give one")
    if kv_budget_mib is not None:
        plan = plan_budget(config, kv_budget_mib, text_minimum)
    else:
        plan = plan_window(config, window or defaults.window, text_minimum)
    runner = _open_runner(folder, manifest, config, plan, options, backend, checkpoint)
    return Session(runner, config, tokenizer, plan, options)


def _read_bundle(folder: Path, *, check_all: bool) -> tuple[Manifest, ModelConfig, Tokenizer]:
    manifest = read_manifest(folder)
    check_files(folder, manifest, hash_all=check_all)
    _require_listed(folder, manifest, {CONFIG_FILE, TOKENIZER_FILE, EMBEDDING_FILE})
    config = read_config(folder / CONFIG_FILE)
    num_layers = config.text_config.num_hidden_layers
    if manifest.lowering != CPU_FP32:
        raise BundleError(
            f"bundle {folder} is for {manifest.lowering}, this mod-edge runs "
            f"{CPU_FP32}; export the checkpoint again"
        )
    if manifest.layers != list(range(num_layers)):
        raise BundleError(
            f"bundle {folder} holds {len(manifest.layers)} of {num_layers} layers; "
            "export the checkpoint without --layers to run it"
        )
    graphs = bundle_signatures(config, manifest.lowering)
    files = {file for graph in graphs for file in (graph.file, graph.data_file) if file}
    _require_listed(folder, manifest, files)
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as exc:  # the library raises bare Exception for every fault
        raise BundleError(
            f"{folder / TOKENIZER_FILE} cannot be read: {exc}; export the checkpoint again"
        ) from exc
    return manifest, config, tokenizer


def _require_listed(folder: Path, manifest: Manifest, needed: set[str]) -> None:
    """Nothing is loaded that the manifest does not vouch for."""
    unlisted = needed - manifest.files.keys()
    if unlisted:
        raise BundleError(
            f"{folder / MANIFEST_FILE} does not list {', '.join(sorted(unlisted))}; "
            "export the checkpoint again"
        )


def _open_runner(
    folder: Path,
    manifest: Manifest,
    config: ModelConfig,
    plan: KvPlan,
    options: SessionOptions,
    backend: str,
    checkpoint: str | Path | None,
) -> Runner:
    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r}, wanted one of {', '.join(BACKENDS)}")
    if (backend == "torch") != (checkpoint is not None):
        raise ConfigError(
            "backend torch runs the checkpoint that the bundle was made from and no other backend "
            "does; give --backend torch and --checkpoint CHECKPOINT together"
        )
    if checkpoint is not None:
        try:
            from mod_edge.runtime.torch_runner import torch_runner_from_checkpoint
        except ModuleNotFoundError as exc:
            raise BackendError(
                f"backend torch needs {exc.name}, which is not installed; "
                'install it with: pip install "mod-edge[export]"'
            ) from exc
        return torch_runner_from_checkpoint(Path(checkpoint), manifest.checkpoint["fingerprint"])
    try:
        from mod_edge.runtime.onnx_runner import OnnxRunner
    except ModuleNotFoundError as exc:
        raise BackendError(
            "backend onnx needs onnxruntime, which is not installed; install it with: pip install "
            '"mod-edge[cpu]"'
        ) from exc
    return OnnxRunner(
        folder,
        config,
        plan.capacity,
        max_step_tokens=options.max_step_tokens,
        frames_per_step=options.frames_per_step,
    )
