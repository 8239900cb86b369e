"""What is evaluated, read and checked: a checkpoint on the reference, or a bundle on a backend."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mod_edge.bundle.manifest import MANIFEST_FILE
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError, ConfigError
from mod_edge.plan.kv_window import Rows
from mod_edge.profiles import Profile, load_profile
from mod_edge.runtime.backends import BackendChoice, open_runner
from mod_edge.runtime.open_session import profile_of_bundle, read_bundle
from mod_edge.runtime.runner import Runner, SessionLimits

REFERENCE_PROFILE = "cpu"


@dataclass(frozen=True)
class OpenedModel:
    """A model, and how to get what computes it.

    Attributes:
        config: its config.
        tokenizer: its tokenizer.
        profile: how it runs.
        capacity: rows of the cache that its graphs have in them; None where they take any.
        dtype: of keys and values.
        open_runner: makes a runner, and says in some words why it is this one.
        seed: seeds what it draws by chance.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    profile: Profile
    capacity: Rows | None
    dtype: str
    open_runner: Callable[[SessionLimits], tuple[Runner, str]]
    seed: Callable[[int], object] = lambda _seed: None


def open_model(
    path: Path, *, backend: str, device: str, profile: str | Path | None = None
) -> OpenedModel:
    """The checkpoint or the bundle at `path`.

    Args:
        path: a checkpoint's or a bundle's folder.
        backend: one of `backends.BACKENDS`: `torch` for a checkpoint, the others for a bundle,
            `auto` for both.
        device: where ONNX Runtime computes, one of `backends.DEVICES`.
        profile: of a bundle, see `profile_of_bundle`.

    Raises:
        CheckpointError: no checkpoint and no bundle there, or a damaged checkpoint.
        BundleError: a damaged or partial bundle.
        ConfigError: a backend or device that does not go with it.
        BackendError: the reference cannot run here.
    """
    is_bundle = (path / MANIFEST_FILE).exists()
    if is_bundle and backend == "torch":
        raise ConfigError(
            f"{path} is a bundle, backend torch runs checkpoints; give the folder of the "
            "checkpoint that it was made from"
        )
    choice = BackendChoice("auto" if backend == "torch" else backend, device)
    if is_bundle:
        return _open_bundle(path, choice, profile)
    if choice != BackendChoice() or profile is not None:
        raise ConfigError(
            f"{path} is no bundle, and backend {backend} on device {device} runs bundles; export "
            "it first, or leave --backend, --device and --profile out to evaluate it with PyTorch"
        )
    return _open_checkpoint(path)


def _open_bundle(path: Path, choice: BackendChoice, profile: str | Path | None) -> OpenedModel:
    manifest, config, tokenizer = read_bundle(path, check_all=False)
    return OpenedModel(
        config,
        tokenizer,
        profile_of_bundle(path, profile),
        manifest.lowering.capacity,
        manifest.lowering.dtype,
        lambda limits: open_runner(path, manifest, config, limits, choice),
    )


def _open_checkpoint(path: Path) -> OpenedModel:
    try:
        import torch

        from mod_edge.model.checkpoint import Checkpoint
        from mod_edge.runtime.cpu.torch_runner import TorchRunner
    except ModuleNotFoundError as exc:
        raise BackendError(
            f"{path} is no bundle, and PyTorch, which evaluates checkpoints, is not all here: no "
            f'{exc.name}; install it with: pip install "mod-edge[export]", or give a bundle'
        ) from exc
    checkpoint = Checkpoint(path)
    model = checkpoint.load_model()
    return OpenedModel(
        checkpoint.config,
        checkpoint.tokenizer,
        load_profile(REFERENCE_PROFILE),
        None,
        "float32",
        lambda _limits: (TorchRunner(model), "for a checkpoint"),
        torch.manual_seed,
    )
