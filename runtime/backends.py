"""Choose the backend that runs a bundle: the requested one, or the best that works."""

from dataclasses import dataclass
from pathlib import Path

from mod_edge.bundle.bundle import Bundle
from mod_edge.errors import BackendError, ConfigError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.package_faults import explained_imports
from mod_edge.runtime.loaded_model import LoadedModel, StreamLimits

BACKENDS = ("auto", "tensorrt", "onnx", "torch")
DEVICES = ("auto", "cpu", "cuda")
CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class BackendChoice:
    """The backend that the user requests.

    Attributes:
        backend: one of `BACKENDS`.
        device: one of `DEVICES`, for ONNX Runtime.
        checkpoint: required by `torch`, None otherwise.
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
                "--checkpoint is for backend torch only, which requires it; "
                "give --backend torch and --checkpoint CHECKPOINT together"
            )
        if self.device != "auto" and self.backend not in ("auto", "onnx"):
            raise ConfigError(
                f"device={self.device} is for ONNX Runtime only, got backend {self.backend}; "
                "omit --device"
            )


def load_model(
    bundle: Bundle, limits: StreamLimits, choice: BackendChoice
) -> tuple[LoadedModel, str]:
    """The bundle loaded on a backend, and the reason for this backend in a few words.

    `auto` takes TensorRT if engines were built and this machine has a GPU and the compiler, else
    ONNX Runtime. Engines that do not fit are an error, because nobody would notice that a slower
    backend runs instead.

    Args:
        bundle: with every layer.
        limits: of every stream.
        choice: the user's request.

    Raises:
        BackendError: the requested backend cannot run here, or engines do not fit.
        BundleError: a layer is missing.
        CacheError: not enough memory.
    """
    bundle.require_whole()
    if choice.backend == "torch":
        assert choice.checkpoint is not None, "checked by BackendChoice"
        return _load_torch(choice.checkpoint, bundle)
    if choice.backend == "tensorrt":
        if not bundle.target.compiler:
            raise BackendError(
                f"bundle {bundle.folder} is for target {bundle.target.name}, which has no engines; "
                "export the checkpoint again with a TensorRT --target (mod-edge targets lists them)"
            )
        return _load_tensorrt(bundle, limits, CudaDriver()), "as requested"
    if choice.backend == "onnx" or choice.device != "auto" or not bundle.target.compiler:
        return _load_onnx(bundle, limits, choice)
    driver, obstacle = _driver_for_engines(bundle)
    if driver is not None:
        return _load_tensorrt(bundle, limits, driver), "its engines fit here"
    try:
        return _load_onnx(bundle, limits, BackendChoice(device="cpu"))[0], obstacle
    except BackendError as exc:
        raise BackendError(f"{obstacle}; and on the CPU: {exc}") from exc


def _driver_for_engines(bundle: Bundle) -> tuple[CudaDriver | None, str]:
    """The GPU for the bundle's engines, or None and why no engine can run."""
    target = bundle.target
    if not bundle.engines:
        build = f"mod-edge build {bundle.folder} --profile NAME"
        return None, f"for target {target.name}, but no engines are built ({build})"
    from mod_edge.native.trt import load

    try:
        load(target.compiler)
        return CudaDriver(), ""
    except BackendError as exc:
        return None, f"engines are built, but {exc}"


def _load_tensorrt(bundle: Bundle, limits: StreamLimits, driver: CudaDriver) -> LoadedModel:
    from mod_edge.runtime.device.trt_model import load_trt_model

    return load_trt_model(bundle, limits, driver=driver)


def _load_onnx(
    bundle: Bundle, limits: StreamLimits, choice: BackendChoice
) -> tuple[LoadedModel, str]:
    with explained_imports("backend onnx"):
        import onnxruntime

        from mod_edge.runtime.cpu.onnx_model import OnnxModel
    is_asked = choice.backend == "onnx" or choice.device != "auto"
    reason = "as requested" if is_asked else f"for target {bundle.target.name}"
    device = choice.device
    if device == "auto" and bundle.target.name == "cuda":
        has_cuda = CUDA_PROVIDER in onnxruntime.get_available_providers()
        device = "cuda" if has_cuda else "cpu"
        if not has_cuda:
            reason = f"for target cuda, but this onnxruntime has no {CUDA_PROVIDER}"
    if device == "cuda":
        from mod_edge.runtime.device.cuda_model import load_cuda_model

        return load_cuda_model(bundle, limits), reason
    return OnnxModel(bundle, limits), reason


def _load_torch(checkpoint: Path, bundle: Bundle) -> tuple[LoadedModel, str]:
    with explained_imports("backend torch"):
        from mod_edge.runtime.cpu.torch_model import load_torch_model
    model = load_torch_model(checkpoint, bundle.manifest.checkpoint["fingerprint"])
    lowering = bundle.lowering
    if not lowering.is_quantized:
        return model, "as requested"
    return model, f"as requested, with the checkpoint's weights, not {lowering.weight_format}"
