"""A bundle's engines on the first GPU: which ones, and the runner that they compute for."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mod_edge.bundle.manifest import Manifest
from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import TensorRT, load
from mod_edge.plan.targets import TARGETS
from mod_edge.runtime.device.device_runner import DeviceRunner
from mod_edge.runtime.device.engine_choice import find_engines
from mod_edge.runtime.device.engine_set import EngineSet
from mod_edge.runtime.runner import SessionLimits


def open_trt_runner(
    folder: Path,
    manifest: Manifest,
    config: ModelConfig,
    limits: SessionLimits,
    *,
    driver: CudaDriver | None = None,
    tensorrt: TensorRT | None = None,
) -> DeviceRunner:
    """A runner on the first GPU with the engines that were built for it.

    Args:
        folder: a checked bundle with every layer, for a target that has a compiler.
        manifest: its manifest.
        config: its config.
        limits: cache rows and steps at most.
        driver: the device; the first GPU where None. Closed with the runner, also on failure.
        tensorrt: what the target's engines run on; that which is installed where None.

    Raises:
        BackendError: no TensorRT, no driver, no GPU, or no engine that fits; says what to do.
        CacheError: the GPU has not so much memory.
    """
    if tensorrt is None:
        tensorrt = load(TARGETS[manifest.lowering.target].compiler)
    if driver is None:
        driver = CudaDriver()
    with ExitStack() as release:
        release.callback(driver.close)
        engines = find_engines(
            folder,
            manifest,
            config,
            limits,
            tensorrt=tensorrt,
            compute_capability=driver.compute_capability,
        )
        lowering = manifest.lowering
        runner = DeviceRunner(
            folder,
            manifest,
            config,
            limits,
            name=f"tensorrt ({tensorrt.name}, {driver.device_name}, {lowering.precision})",
            driver=driver,
            open_graphs=partial(EngineSet, driver, tensorrt, folder, config, lowering, engines),
        )
        release.pop_all()
    return runner
