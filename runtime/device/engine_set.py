"""All engines of a bundle in device memory, and the scratch memory that their contexts share."""

from typing import Any

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.engine_manifest import RUNTIME_CACHE_FILE, EngineManifest
from mod_edge.bundle.shape_ranges import optimization_profiles
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import TensorRT, scratch_bytes, set_scratch
from mod_edge.runtime.device.engine_context import EngineContext
from mod_edge.runtime.device.engine_loader import EngineLoader


class EngineSet:
    """Loads every engine once; contexts take little memory and are made on request."""

    can_capture = True

    def __init__(
        self,
        driver: CudaDriver,
        tensorrt: TensorRT,
        bundle: Bundle,
        engines: EngineManifest,
    ) -> None:
        """Load `engines`, which `find_engines` has checked.

        Raises:
            BackendError: an engine does not load.
            CacheError: not enough memory on the device.
        """
        folder = bundle.folder / engines.settings.folder
        self._driver = driver
        self._loader = EngineLoader(tensorrt, driver.stream, folder / RUNTIME_CACHE_FILE)
        self._signatures = {signature.name: signature for signature in bundle.signatures()}
        self._profiles: dict[str, list[str]] = {}
        self._engines: dict[str, Any] = {}
        for name, signature in self._signatures.items():
            profiles = optimization_profiles(signature, bundle.config, engines.settings.limits)
            self._profiles[name] = list(profiles)
            path = folder / engines.engines[name].file
            self._engines[name] = self._loader.engine(path, signature, len(profiles))
        # Graphs run one after another on one stream, so they can share one block.
        self._scratch_bytes = max(map(scratch_bytes, self._engines.values()))
        self._scratch = driver.malloc(self._scratch_bytes, "the engines' scratch memory")

    @property
    def warnings(self) -> list[str]:
        """TensorRT's warnings about the engines."""
        return self._loader.warnings

    def context(self, name: str, profile: str, *, is_captured: bool = False) -> EngineContext:
        """A new context of the graph `name`, see `EngineLoader.context`."""
        index = self._profiles[name].index(profile)
        native = self._loader.context(self._engines[name], index, is_captured=is_captured)
        set_scratch(native, self._scratch, self._scratch_bytes)
        return EngineContext(self._signatures[name], native, self._driver.stream)

    def close(self) -> None:
        """Release the engines; all contexts must be gone."""
        try:
            self._loader.close()
        finally:
            self._engines.clear()
