"""Which backend runs a bundle: the one that is asked for, or the best that works, and why."""

from dataclasses import dataclass
from pathlib import Path

from mod_edge.bundle.engine_manifest import read_engine_manifests
from mod_edge.bundle.manifest import Manifest
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError, ConfigError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.plan.targets import TARGETS
from mod_edge.runtime.runner import Runner, SessionLimits

BACKENDS = ("auto", "tensorrt", "onnx", "torch")
DEVICES = ("auto", "cpu", "cuda")
CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class BackendChoice:
    """What the user asks for.

    Attributes:
        backend: one of `BACKENDS`.
        device: one of `DEVICES`, for ONNX Runtime.
        checkpoint: for `torch`, and only for it.
    """

    backend: str = "auto"
    device: str = "auto"
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("backend", BACKENDS), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}, wanted one of {', '.join(known)}"
                )
        if (self.backend == "torch") != (self.checkpoint is not None):
            raise ConfigError(
                "backend torch runs the checkpoint that the bundle was made from and no other "
                "backend does; give --backend torch and --checkpoint CHECKPOINT together"
            )
        if self.device != "auto" and self.backend not in ("auto", "onnx"):
            raise ConfigError(
                f"device={self.device} chooses where ONNX Runtime computes; backend "
                f"{self.backend} has no choice, leave --device out"
            )


def open_runner(
    folder: Path,
    manifest: Manifest,
    config: ModelConfig,
    limits: SessionLimits,
    choice: BackendChoice,
) -> tuple[Runner, str]:
    """A runner, and why it is this one, in some words.

    `auto` takes TensorRT where engines were built and this machine has a GPU and the compiler, else
    ONNX Runtime. What is there and does not fit is an error: a slower backend in its place would
    go unnoticed.

    Args:
        folder: a checked bundle with every layer.
        manifest: its manifest.
        config: its config.
        limits: cache rows and steps at most.
        choice: what the user asks for.

    Raises:
        BackendError: what is asked for cannot run here, or engines do not fit.
        CacheError: there is not so much memory.
    """
    if choice.backend == "torch":
        assert choice.checkpoint is not None, "BackendChoice sees to it"
        return _open_torch(choice.checkpoint, manifest), "as asked"
    if choice.backend == "tensorrt":
        return _open_tensorrt(folder, manifest, config, limits, CudaDriver()), "as asked"
    if choice.backend == "onnx" or choice.device != "auto":
        return _open_onnx(folder, manifest, config, limits, choice.device)
    if not TARGETS[manifest.lowering.target].compiler:
        return _open_onnx(folder, manifest, config, limits, choice.device)
    driver, obstacle = _driver_for_engines(folder, manifest)
    if driver is not None:
        return _open_tensorrt(folder, manifest, config, limits, driver), "its engines fit here"
    try:
        return _open_onnx(folder, manifest, config, limits, "cpu")[0], obstacle
    except BackendError as exc:
        raise BackendError(f"{obstacle}; and on the CPU: {exc}") from exc


def _driver_for_engines(folder: Path, manifest: Manifest) -> tuple[CudaDriver | None, str]:
    """The GPU for the bundle's engines, or None and what is lacking to run any."""
    target = TARGETS[manifest.lowering.target]
    if not read_engine_manifests(folder):
        build = f"mod-edge build {folder} --profile NAME"
        return None, f"for target {target.name}, but no engines are built ({build})"
    from mod_edge.native.trt import load

    try:
        load(target.compiler)
        return CudaDriver(), ""
    except BackendError as exc:
        return None, f"engines are built, but {exc}"


def _open_tensorrt(
    folder: Path, manifest: Manifest, config: ModelConfig, limits: SessionLimits, driver: CudaDriver
) -> Runner:
    from mod_edge.runtime.device.trt_runner import open_trt_runner

    target = TARGETS[manifest.lowering.target]
    if not target.compiler:
        driver.close()
        raise BackendError(
            f"bundle {folder} is for target {target.name}, which has no engines; export the "
            "checkpoint again with a --target that TensorRT compiles (mod-edge targets)"
        )
    return open_trt_runner(folder, manifest, config, limits, driver=driver)


def _open_onnx(
    folder: Path, manifest: Manifest, config: ModelConfig, limits: SessionLimits, device: str
) -> tuple[Runner, str]:
    try:
        import onnxruntime

        from mod_edge.runtime.cpu.onnx_runner import OnnxRunner
    except ModuleNotFoundError as exc:
        raise BackendError(
            "backend onnx needs onnxruntime, which is not installed; install it with: pip install "
            '"mod-edge[cpu]"'
        ) from exc
    reason = f"for target {manifest.lowering.target}" if device == "auto" else "as asked"
    if device == "auto" and manifest.lowering.target == "cuda":
        has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers()
        device = "cuda" if has_cuda else "cpu"
        if not has_cuda:
            reason = f"for target cuda, but this onnxruntime has no {CUDA_PROVIDER}"
    if device == "cuda":
        from mod_edge.runtime.device.cuda_runner import open_cuda_runner

        return open_cuda_runner(folder, manifest, config, limits), reason
    runner = OnnxRunner(
        folder,
        config,
        manifest.lowering,
        limits.capacity,
        max_step_tokens=limits.max_step_tokens,
        frames_per_step=limits.frames_per_step,
    )
    return runner, reason


def _open_torch(checkpoint: Path, manifest: Manifest) -> Runner:
    try:
        from mod_edge.runtime.cpu.torch_runner import torch_runner_from_checkpoint
    except ModuleNotFoundError as exc:
        raise BackendError(
            f"backend torch needs {exc.name}, which is not installed; "
            'install it with: pip install "mod-edge[export]"'
        ) from exc
    return torch_runner_from_checkpoint(checkpoint, manifest.checkpoint["fingerprint"])
