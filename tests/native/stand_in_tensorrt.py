"""A stand-in for TensorRT on machines without a GPU: runs an engine's graph in ONNX Runtime.

An engine file names its graph. Running it reads and writes the bound addresses in the stand-in
driver's memory, when its stream runs. It is as strict as TensorRT, and raises `MisuseError` where
TensorRT would crash or return garbage. Classes have the names and only methods of the real ones.
"""

import functools
import json
import weakref
from enum import IntEnum
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from mod_edge.bundle.engine_manifest import (
    EngineManifest,
    EngineRecord,
    EngineSettings,
    engine_file,
    engine_key,
    write_engine_manifest,
)
from mod_edge.bundle.manifest import record_file
from mod_edge.bundle.shape_ranges import optimization_profiles
from mod_edge.export.lower import without_decomposable
from mod_edge.native.onnx_session import session_options
from mod_edge.native.trt import Log, LogLine, TensorRT
from tests.native.stand_in_driver import ALIGNMENT, POISON, STREAM, MisuseError, array_at, overlap

VERSION = "1.7.1.116"
SCRATCH_BYTES = 4096


class ExecutionContextAllocationStrategy(IntEnum):
    """Who allocates a context's scratch memory."""

    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    """When TensorRT-RTX compiles kernels for a shape."""

    LAZY = 0
    EAGER = 1


class TensorIOMode(IntEnum):
    """Whether a tensor is an input or an output."""

    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    """Where an engine expects a tensor."""

    DEVICE = 0
    HOST = 1


class DataType(IntEnum):
    """A tensor's type."""

    FLOAT = 0
    HALF = 1
    INT64 = 8
    UINT8 = 5


DATA_TYPES = {  # TensorRT's and numpy's, by ONNX Runtime's name
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
    "tensor(uint8)": (DataType.UINT8, np.uint8),
}


class StandInApi:
    """The module `tensorrt_rtx`, on a stand-in driver."""

    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    __version__ = VERSION

    def __init__(self, cudart):
        self.cudart, self.strategies = cudart, []
        self.log = Log()
        self.is_capturable = self.makes_contexts = True
        self.load_warning = ""  # logged when an engine is loaded

    def Runtime(self, logger):  # noqa: N802 - TensorRT's name
        return Runtime(self)


def stand_in_tensorrt(cudart, compiler="tensorrt_rtx", version=VERSION):
    """The result of `load`, with `StandInApi` in place of the module."""
    api = StandInApi(cudart)
    return TensorRT(compiler, api, version, api.log, native_logger=None)


class Runtime:
    """Makes engines from files."""

    def __init__(self, api):
        self._api = api

    def deserialize_cuda_engine(self, serialized_engine):
        if self._api.load_warning:
            self._api.log.add(LogLine(False, self._api.load_warning))
        try:
            data = json.loads(bytes(serialized_engine))
        except ValueError:
            self._api.log.add(LogLine(True, "Serialization error: magic tag does not match"))
            return None
        return ICudaEngine(self._api, data)


class ICudaEngine:
    """A graph with its shape ranges."""

    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, api, data):
        self._api, self._data = api, data
        self._session = load_session(data["graph"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._tensors = {value.name: value for value in (*inputs, *outputs)}
        self._inputs = {value.name for value in inputs}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(data["profiles"])

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DATA_TYPES[self._tensors[name].type][0]

    def get_tensor_shape(self, name):
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._tensors[name].shape)

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name):
        return self._data["aliases"].get(name)

    def create_runtime_config(self):
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config):
        if not self._api.makes_contexts:
            self._api.log.add(LogLine(True, "out of memory"))
            return None
        if isinstance(runtime_config, IRuntimeConfig):
            self._api.strategies.append(
                runtime_config.dynamic_shapes_kernel_specialization_strategy
            )
            strategy = runtime_config._strategy
        else:
            strategy = runtime_config
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            raise MisuseError("a context that allocates its own scratch memory")
        return IExecutionContext(self._api, self, getattr(runtime_config, "_cache", None))


class IRuntimeConfig:
    """How TensorRT-RTX makes a context."""

    def __init__(self):
        self.dynamic_shapes_kernel_specialization_strategy = None
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class IRuntimeCache:
    """The compiled kernels, by graph and shapes."""

    def __init__(self):
        self._kernels = set()

    def serialize(self):
        return json.dumps(sorted(self._kernels)).encode()

    def deserialize(self, blob):
        try:
            self._kernels = set(json.loads(bytes(blob)))
        except ValueError:
            return False
        return True


class IExecutionContext:
    """Runs one engine; strict about what is bound and when."""

    def __init__(self, api, engine, cache):
        self._api, self._engine, self._cache = api, engine, cache
        self._profile = self._scratch = None
        self._shapes, self._addresses = {}, {}
        self._has_run = None  # shapes of the last run
        self._version = 0

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if stream_handle != STREAM:
            raise MisuseError("an optimization profile on another stream")
        self._profile = self._engine._data["profiles"][profile_index]
        self._shapes, self._version = {}, self._version + 1
        return True

    def set_device_memory(self, memory, size):
        self._api.cudart.require_device(memory, size, "scratch")
        self._scratch, self._version = (memory, size), self._version + 1

    def set_input_shape(self, name, shape):
        self._version += 1
        low, _, high = self._profile[name]
        fits = len(shape) == len(low) and all(
            least <= dim <= most for least, dim, most in zip(low, shape, high, strict=True)
        )
        if not fits:
            self._log(f"{name}: {shape} is outside of {low} to {high}")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, memory):
        self._version += 1
        if name not in self._engine._tensors:
            self._log(f"unknown tensor {name}")
            return False
        if not memory or memory % ALIGNMENT:
            raise MisuseError(f"{name} is bound to {memory:#x}, which is not aligned")
        self._addresses[name] = memory
        return True

    def is_stream_capturable(self, stream):
        return self._api.is_capturable

    def execute_async_v3(self, stream_handle):
        if stream_handle != STREAM:
            raise MisuseError("an engine runs on another stream")
        tensors = self._bound()
        cudart = self._api.cudart
        if cudart.is_capturing and self._has_run != self._shapes:
            # TensorRT updates its state in the first run of a shape, which cannot be captured.
            cudart.invalidate_capture()
            self._log("the first run in a shape cannot be captured")
            return False
        version, alive = self._version, weakref.ref(self)

        def context():
            if alive() is None:
                raise MisuseError("a context is deleted while it runs")
            return alive()

        cudart.submit(lambda: context()._run(tensors), lambda: context()._require_version(version))
        self._has_run = dict(self._shapes)
        if self._cache is not None:
            self._cache._kernels.add(f"{self._engine._data['graph']} {self._shapes}")
        return True

    def _require_version(self, version):
        if version != self._version:
            raise MisuseError("a graph is launched after its context was changed")

    def _bound(self):
        """(name, address, shape, dtype) of every tensor, checked."""
        engine = self._engine
        missing = engine._inputs - self._shapes.keys()
        missing |= engine._tensors.keys() - self._addresses.keys()
        if missing or self._scratch is None or self._scratch[1] < SCRATCH_BYTES:
            raise MisuseError(f"an engine runs without {missing or 'scratch memory'}")
        sizes = {}
        for name, shape in self._shapes.items():
            for letter, dim in zip(engine._tensors[name].shape, shape, strict=True):
                if sizes.setdefault(letter, dim) != dim:
                    raise MisuseError(f"{name} is {shape}, but {letter} is {sizes[letter]}")
        tensors = [
            (
                name,
                self._addresses[name],
                tuple(sizes.get(dim, dim) for dim in value.shape),
                DATA_TYPES[value.type][1],
            )
            for name, value in engine._tensors.items()
        ]
        self._require_apart(tensors)
        return tensors

    def _require_apart(self, tensors):
        """Outputs must not overlap other tensors, except an aliased input."""
        places = {name: (address, size_of(shape, dtype)) for name, address, shape, dtype in tensors}
        for name, place in places.items():
            self._api.cudart.require_device(*place, name)
        for output, place in {**places, "scratch": self._scratch}.items():
            if output in self._engine._inputs:
                continue
            aliased = self._engine.get_aliased_input_tensor(output)
            if aliased and places[aliased] != place:
                raise MisuseError(f"{output} is not bound to the address of {aliased}")
            for other, other_place in places.items():
                if other not in (output, aliased) and overlap(*place, *other_place):
                    raise MisuseError(f"{output} is written over {other}")

    def _run(self, tensors):
        self._require_apart(tensors)
        array_at(self._scratch[0], (SCRATCH_BYTES,), np.uint8)[:] = POISON
        binding = self._engine._session.io_binding()
        for name, address, shape, dtype in tensors:
            is_input = name in self._engine._inputs
            bind = binding.bind_input if is_input else binding.bind_output
            bind(name, "cpu", 0, dtype, shape, address)
        self._engine._session.run_with_iobinding(binding)

    def _log(self, text):
        self._api.log.add(LogLine(True, text))


def size_of(shape, dtype):
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


@functools.cache
def load_session(path):
    """ONNX Runtime's session of a graph, without TensorRT's attribute."""
    readable = Path(path).with_suffix(".readable.onnx")  # beside its weights
    model = onnx.load(path, load_external_data=False)
    readable.write_bytes(without_decomposable(model).SerializeToString())
    options = session_options()
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(str(readable), options, providers=["CPUExecutionProvider"])


def build_stand_ins(bundle, limits, tensorrt, **changes):
    """Like `build_engines`, for this stand-in, with `changes` to the settings."""
    settings = EngineSettings(
        **{
            "target": bundle.target.name,
            "compiler": tensorrt.compiler,
            "version": tensorrt.version,
            "compute_capability": "89",
            "precision": bundle.lowering.precision,
            "profile": "rtx-ada",
            "limits": limits,
            "workspace_mib": 256,
            "builder_optimization_level": 3,
            **changes,
        }
    )
    folder = bundle.folder / settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for signature in bundle.signatures():
        profiles = optimization_profiles(signature, bundle.config, limits).values()
        data = {
            "graph": str(bundle.folder / signature.file),
            "profiles": [
                {name: [shapes.min, shapes.opt, shapes.max] for name, shapes in inputs.items()}
                for inputs in profiles
            ],
            "aliases": signature.aliases,
        }
        path = folder / engine_file(signature)
        path.write_text(json.dumps(data))
        key = engine_key(bundle.manifest, bundle.config, signature, settings)
        file = record_file(path)
        records[signature.name] = EngineRecord(path.name, key, file.sha256, file.size_bytes, 0.1)
    engines = EngineManifest(settings, records)
    write_engine_manifest(engines, bundle.folder)
    return engines
