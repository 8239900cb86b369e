"""TensorRT engines for `mod-edge verify`: whether they can run here, and a runner for one graph."""

from polygraphy import config as polygraphy_config
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.engine_manifest import engine_file
from mod_edge.bundle.shape_ranges import optimization_profiles
from mod_edge.errors import BackendError
from mod_edge.native.gpu import find_gpu
from mod_edge.native.trt import NAMES, TensorRT, load
from mod_edge.plan.signature import GraphSignature
from mod_edge.runtime.device.engine_choice import find_engines
from mod_edge.runtime.device.engine_loader import EngineLoader
from mod_edge.runtime.loaded_model import StreamLimits
from mod_edge.verification.graph_backends import GraphBackend, NotRun, input_metadata
from mod_edge.verification.recording import Arrays


def find_tensorrt(bundle: Bundle) -> TensorRT | NotRun:
    """The TensorRT of the bundle's engines, or why they cannot run here: no GPU, no engines."""
    compiler = bundle.target.compiler
    try:
        find_gpu()
        tensorrt = load(compiler)
    except BackendError as exc:
        return NotRun(NAMES[compiler], str(exc))
    if not bundle.engines:
        command = f"mod-edge build {bundle.folder} --profile NAME"
        return NotRun(NAMES[compiler], f"the bundle has no engines; build them with: {command}")
    return tensorrt


def engine_backend(bundle: Bundle, tensorrt: TensorRT, limits: StreamLimits) -> GraphBackend:
    """The engines that were built for this GPU, one graph at a time."""

    def runner(_path: object, signature: GraphSignature) -> BaseRunner:
        return EngineRunner(bundle, signature, tensorrt, limits)

    return GraphBackend(tensorrt.name, runner)


class EngineRunner(BaseRunner):  # type: ignore[misc] # Polygraphy ships no types
    """Polygraphy's TensorRT runner, switched to the optimization profile that a step fits."""

    def __init__(
        self,
        bundle: Bundle,
        signature: GraphSignature,
        tensorrt: TensorRT,
        limits: StreamLimits,
    ) -> None:
        super().__init__(name=f"{tensorrt.name} {signature.name}")
        self._bundle, self._signature = bundle, signature
        self._tensorrt, self._limits = tensorrt, limits

    def activate_impl(self) -> None:
        """Load the engine that fits this GPU."""
        # Polygraphy reads this when the module below is imported.
        polygraphy_config.USE_TENSORRT_RTX = self._tensorrt.is_rtx
        from polygraphy.backend.trt import TrtRunner

        bundle, tensorrt = self._bundle, self._tensorrt
        engines = find_engines(
            bundle,
            self._limits,
            tensorrt=tensorrt,
            compute_capability=find_gpu().compute_capability,
        )
        limits = engines.settings.limits
        self._profiles = optimization_profiles(self._signature, bundle.config, limits)
        folder = bundle.folder / engines.settings.folder
        loader = EngineLoader(tensorrt, 0, folder / "unused")
        engine = loader.engine(
            folder / engine_file(self._signature), self._signature, len(self._profiles)
        )
        self._runner = TrtRunner(engine, name=self.name)
        self._runner.activate()

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and dims of the inputs."""
        return input_metadata(self._signature)

    def infer_impl(self, feed_dict: Arrays) -> Arrays:
        """One step, under the first profile that takes its shapes."""
        fitting = [
            number
            for number, ranges in enumerate(self._profiles.values())
            if all(
                _is_within(array.shape, ranges[name].min, ranges[name].max)
                for name, array in feed_dict.items()
            )
        ]
        if not fitting:
            shapes = {name: array.shape for name, array in feed_dict.items()}
            raise BackendError(f"no optimization profile covers a step of {shapes}")
        self._runner.set_profile(fitting[0])
        if self._bundle.lowering.precision == "bf16":
            outputs = self._infer_bfloat16(feed_dict)
        else:
            outputs = self._runner.infer(feed_dict)
        self.inference_time = self._runner.last_inference_time()
        return outputs

    def _infer_bfloat16(self, feed_dict: Arrays) -> Arrays:
        """The step on PyTorch's tensors, because numpy has no bfloat16."""
        import torch

        dtypes = {spec.name: getattr(torch, spec.dtype) for spec in self._signature.inputs}
        feed = {name: torch.tensor(array).to(dtypes[name]) for name, array in feed_dict.items()}
        outputs = self._runner.infer(feed)
        return {
            name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            for name, tensor in outputs.items()
        }

    def deactivate_impl(self) -> None:
        """Release the engine."""
        self._runner.deactivate()
        del self._runner


def _is_within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
