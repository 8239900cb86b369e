"""A bundle's graphs on the first GPU, computed by ONNX Runtime's CUDA provider."""

from contextlib import ExitStack
from functools import partial

import onnxruntime

from mod_edge.bundle.bundle import Bundle
from mod_edge.errors import BackendError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.plan.targets import TARGETS
from mod_edge.runtime.device.device_model import DeviceModel
from mod_edge.runtime.device.onnx_graph_set import OnnxGraphSet
from mod_edge.runtime.loaded_model import StreamLimits


def load_cuda_model(
    bundle: Bundle, limits: StreamLimits, *, driver: CudaDriver | None = None
) -> DeviceModel:
    """The bundle on the first GPU, its graphs computed there by ONNX Runtime.

    Args:
        bundle: with every layer, for a target with a cache on a device.
        limits: of every stream.
        driver: the device; None opens the first GPU. Closed with the model, also on failure.

    Raises:
        BackendError: no driver, GPU or CUDA provider, or graphs that it does not support.
        CacheError: not enough memory on the GPU.
    """
    with ExitStack() as release:
        if driver is not None:
            release.callback(driver.close)
        _require_runnable(bundle)
        if driver is None:
            driver = CudaDriver()
            release.callback(driver.close)
        model = DeviceModel(
            bundle,
            limits,
            name=f"onnx (onnxruntime {onnxruntime.__version__}, CUDA, {driver.device_name}, "
            f"{bundle.lowering.numbers})",
            driver=driver,
            open_graphs=partial(OnnxGraphSet, driver.stream, bundle),
        )
        release.pop_all()
    return model


def _require_runnable(bundle: Bundle) -> None:
    target, precision = bundle.target, bundle.lowering.precision
    if not target.has_device_cache or precision not in TARGETS["cuda"].precisions:
        raise BackendError(
            f"bundle {bundle.folder} is for target {target.name} in {precision}, which ONNX "
            "Runtime's CUDA provider does not support; export the checkpoint again with "
            "--target cuda, or use --device cpu"
        )
