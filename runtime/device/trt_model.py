"""A bundle's TensorRT engines on the first GPU."""

from contextlib import ExitStack
from functools import partial

from mod_edge.bundle.bundle import Bundle
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import TensorRT, load
from mod_edge.runtime.device.device_model import DeviceModel
from mod_edge.runtime.device.engine_choice import find_engines
from mod_edge.runtime.device.engine_set import EngineSet
from mod_edge.runtime.loaded_model import StreamLimits


def load_trt_model(
    bundle: Bundle,
    limits: StreamLimits,
    *,
    driver: CudaDriver | None = None,
    tensorrt: TensorRT | None = None,
) -> DeviceModel:
    """The bundle on the first GPU, with the engines that were built for it.

    Args:
        bundle: with every layer, for a target that has a compiler.
        limits: of every stream.
        driver: the device; None opens the first GPU. Closed with the model, also on failure.
        tensorrt: runs the engines; None loads the installed one for the target.

    Raises:
        BackendError: no TensorRT, no driver, no GPU, or no engine that fits; says what to do.
        CacheError: not enough memory on the GPU.
    """
    with ExitStack() as release:
        if driver is not None:
            release.callback(driver.close)
        if tensorrt is None:
            tensorrt = load(bundle.target.compiler)
        if driver is None:
            driver = CudaDriver()
            release.callback(driver.close)
        engines = find_engines(
            bundle, limits, tensorrt=tensorrt, compute_capability=driver.compute_capability
        )
        model = DeviceModel(
            bundle,
            limits,
            name=f"tensorrt ({tensorrt.name}, {driver.device_name}, {bundle.lowering.numbers})",
            driver=driver,
            open_graphs=partial(EngineSet, driver, tensorrt, bundle, engines),
        )
        release.pop_all()
    return model
