"""Load engine files, check them against their signatures and make their contexts."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mod_edge.bundle.staging import write_whole
from mod_edge.errors import BackendError
from mod_edge.native.trt import (
    DATA_TYPES,
    TensorRT,
    context_settings,
    is_aliased,
    new_kernel_cache,
)
from mod_edge.plan.signature import GraphSignature, TensorSpec

LOG = logging.getLogger(__name__)
AGAIN = "every start compiles the kernels again"


class EngineLoader:
    """Loads engines and makes their contexts; `warnings` collects TensorRT's messages."""

    def __init__(self, tensorrt: TensorRT, stream: int, cache_path: Path) -> None:
        """Start TensorRT's runtime.

        Args:
            tensorrt: the one that built the engines.
            stream: CUDA stream of all contexts.
            cache_path: where TensorRT-RTX stores the kernels that it compiles for this GPU.

        Raises:
            BackendError: the runtime does not start.
        """
        self.warnings: list[str] = []
        self._tensorrt = tensorrt
        self._stream = stream
        self._cache_path = cache_path
        self._stored_cache = b""
        self._cache: Any = None
        self._settings: dict[tuple[int, bool], Any] = {}  # must outlive the contexts
        with self._reported("does not start here"):
            self._runtime = tensorrt.api.Runtime(tensorrt.native_logger)

    def engine(self, path: Path, signature: GraphSignature, num_profiles: int) -> Any:
        """The engine in the file at `path`, checked against `signature`.

        Raises:
            BackendError: it does not load, has other tensors or optimization profiles, or copies
                the cache instead of writing into it.
        """
        with self._reported(f"cannot load {path}"):
            data = np.memmap(path, np.uint8, "r")  # an engine may have gigabytes
            # TensorRT 10.3 asks for the buffer without holding Python's lock, which numpy needs.
            engine = _required(self._runtime.deserialize_cuda_engine(data.data))
        faults = _faults(self._tensorrt.api, engine, signature)
        if engine.num_optimization_profiles != num_profiles:
            found = engine.num_optimization_profiles
            faults.append(f"it has {found} optimization profiles, wanted {num_profiles}")
        if faults:
            raise BackendError(
                f"{path} does not match its manifest: {'; '.join(faults)}; remove "
                f"{path.parent} and build again"
            )
        return engine

    def context(self, engine: Any, profile_index: int, *, is_captured: bool) -> Any:
        """A context of one optimization profile; the caller sets its scratch memory.

        Args:
            engine: from `engine`.
            profile_index: of the profile.
            is_captured: see `context_settings`.

        Raises:
            BackendError: TensorRT cannot make the context.
        """
        with self._reported("cannot make an execution context"):
            if self._cache is None:
                self._cache = new_kernel_cache(self._tensorrt, engine)
                self._load_cache()
            kind = (id(engine), is_captured)
            if kind not in self._settings:
                self._settings[kind] = context_settings(
                    self._tensorrt, engine, self._cache, is_captured=is_captured
                )
            context = _required(engine.create_execution_context(self._settings[kind]))
            _required(context.set_optimization_profile_async(profile_index, self._stream))
        return context

    def close(self) -> None:
        """Store the kernels that TensorRT-RTX compiled; all contexts must be gone."""
        try:
            self._save_cache()
        finally:
            self._settings.clear()
            self._cache = None

    def _save_cache(self) -> None:
        """Write the file atomically, and only if there are new kernels."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if data == self._stored_cache:
            return
        try:
            write_whole(self._cache_path, data)
        except OSError as exc:  # the last summary, which shows `warnings`, is over
            LOG.warning("%s cannot be written (%s): %s", self._cache_path, exc.strerror, AGAIN)

    def _load_cache(self) -> None:
        if self._cache is None:
            return
        if self._cache_path.is_file():
            data = self._cache_path.read_bytes()
            if self._cache.deserialize(data):
                self._stored_cache = data
                return
            self.warnings.append(
                f"{self._cache_path} is for another driver or GPU: kernels are compiled again"
            )
        if not os.access(self._cache_path.parent, os.W_OK):
            self.warnings.append(f"{self._cache_path.parent} cannot be written: {AGAIN}")

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Put TensorRT's messages into the error; into `warnings` if there is no error."""
        with self._tensorrt.log.collected() as lines:
            try:
                yield
            except Exception as exc:  # pybind raises bare exceptions of many types
                errors = [" ".join(line.text.split()) for line in lines if line.is_error]
                reason = errors[0] if errors else exc
                raise BackendError(
                    f"{self._tensorrt.name} {what}: {reason}; see: mod-edge doctor"
                ) from exc
        known = set(self.warnings)
        self.warnings += dict.fromkeys(line.text for line in lines if line.text not in known)


def _required(answer: Any) -> Any:
    """TensorRT's answer, which is None or False on failure; the reason is in its log."""
    if not answer:
        raise RuntimeError("no reason given")
    return answer


def _faults(api: Any, engine: Any, signature: GraphSignature) -> list[str]:
    """How the engine's tensors differ from the signature, by which they are bound."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    faults = [f"it has no {name!r}" for name in [*inputs, *outputs] if name not in names]
    for name in names:
        is_input = engine.get_tensor_mode(name) == api.TensorIOMode.INPUT
        spec = (inputs if is_input else outputs).get(name)
        found = (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))
        if spec is None or not _fits(*found, spec, is_input=is_input):
            faults.append(f"its {name!r} is {found}, wanted {spec}")
        if engine.get_tensor_location(name) != api.TensorLocation.DEVICE:
            faults.append(f"it expects {name!r} in host memory")
    faults += [
        f"it copies the cache instead of writing {output!r} into {past!r}"
        for output, past in signature.aliases.items()
        if not is_aliased(engine, output, past)
    ]
    return faults


def _fits(dtype: str, dims: tuple[int, ...], spec: TensorSpec, *, is_input: bool) -> bool:
    """Exact for inputs; outputs may have more or fewer static dims than the signature."""
    if dtype != DATA_TYPES[spec.dtype] or len(dims) != len(spec.dims):
        return False
    wanted = [-1 if isinstance(dim, str) else dim for dim in spec.dims]
    if is_input:
        return list(dims) == wanted
    return all(-1 in (dim, want) or dim == want for dim, want in zip(dims, wanted, strict=True))
