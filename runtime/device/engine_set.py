"""All engines of a bundle in device memory, their contexts, and the scratch memory they share."""

from typing import Any

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.engine_manifest import RUNTIME_CACHE_FILE, EngineManifest
from mod_edge.bundle.shape_ranges import optimization_profiles
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.native.trt import TensorRT, scratch_bytes, set_scratch
from mod_edge.runtime.device.engine_context import EngineContext
from mod_edge.runtime.device.engine_loader import EngineLoader


class EngineSet:
    """Loads every engine once; contexts are cheap beside them, and made as they are asked for."""

    can_capture = True

    def __init__(
        self,
        driver: CudaDriver,
        tensorrt: TensorRT,
        bundle: Bundle,
        engines: EngineManifest,
    ) -> None:
        """Load the engines, which are checked already.

        Raises:
            BackendError: one does not load.
            CacheError: the device has not so much memory.
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
        # Steps run one after another on one stream, so one block serves all.
        self._scratch_bytes = max(map(scratch_bytes, self._engines.values()))
        self._scratch = driver.malloc(self._scratch_bytes, "what engines need while they run")

    @property
    def warnings(self) -> list[str]:
        """What TensorRT said about the engines."""
        return self._loader.warnings

    def context(self, name: str, profile: str, *, is_captured: bool = False) -> EngineContext:
        """A new context of the graph `name`, see `EngineLoader.context`.

        Raises:
            BackendError: TensorRT cannot make it.
        """
        index = self._profiles[name].index(profile)
        native = self._loader.context(self._engines[name], index, is_captured=is_captured)
        set_scratch(native, self._scratch, self._scratch_bytes)
        return EngineContext(self._signatures[name], native, self._driver.stream)

    def close(self) -> None:
        """Let go of the engines; all contexts are gone already."""
        try:
            self._loader.close()
        finally:
            self._engines.clear()
