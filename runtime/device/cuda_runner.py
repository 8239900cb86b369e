"""A bundle's graphs on the first GPU by ONNX Runtime's CUDA provider."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import onnxruntime

from mod_edge.bundle.manifest import Manifest
from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.plan.targets import TARGETS, Lowering
from mod_edge.runtime.device.device_runner import DeviceRunner
from mod_edge.runtime.device.onnx_graph_set import OnnxGraphSet
from mod_edge.runtime.runner import SessionLimits


def open_cuda_runner(
    folder: Path,
    manifest: Manifest,
    config: ModelConfig,
    limits: SessionLimits,
    *,
    driver: CudaDriver | None = None,
) -> DeviceRunner:
    """A runner on the first GPU whose graphs ONNX Runtime computes there.

    Args:
        folder: a checked bundle with every layer, for a target with a cache on a device.
        manifest: its manifest.
        config: its config.
        limits: cache rows and steps at most.
        driver: the device; the first GPU where None. Closed with the runner, also on failure.

    Raises:
        BackendError: no driver, no GPU, no CUDA provider, or graphs that it does not take.
        CacheError: the GPU has not so much memory.
    """
    lowering = manifest.lowering
    with ExitStack() as release:
        if driver is not None:
            release.callback(driver.close)
        _require_runnable(folder, lowering)
        if driver is None:
            driver = CudaDriver()
            release.callback(driver.close)
        runner = DeviceRunner(
            folder,
            manifest,
            config,
            limits,
            name=f"onnx (onnxruntime {onnxruntime.__version__}, CUDA, {driver.device_name}, "
            f"{lowering.precision})",
            driver=driver,
            open_graphs=partial(OnnxGraphSet, driver.stream, folder, config, lowering),
        )
        release.pop_all()
    return runner


def _require_runnable(folder: Path, lowering: Lowering) -> None:
    target = TARGETS[lowering.target]
    if not target.has_device_cache or lowering.precision not in TARGETS["cuda"].precisions:
        raise BackendError(
            f"bundle {folder} is for target {target.name} in {lowering.precision}, which ONNX "
            "Runtime's CUDA provider does not take; export the checkpoint again with "
            "--target cuda, or take --device cpu"
        )
