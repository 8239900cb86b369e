"""Options for ONNX Runtime sessions that share one thread pool and one CPU arena per process.

With one pool per session, a chain of 16 layer sessions ran 4.5 times slower. Once the process has
a global pool, ONNX Runtime rejects sessions with their own threads: every session of this package
takes its options from here, and a program with other models must set
`use_per_session_threads = False` on theirs.

An arena keeps the memory of its largest step. With one per session, a prompt of 1,500 tokens took
4.0 GB on the 1b geometry; layers run one after the other, and with one for all it takes 0.4 GB.

Sessions on a GPU do not share: what the process registers replaces their arenas by allocators that
ask the driver for every tensor, and ONNX Runtime then frees pinned memory where CUDA forbids it.
"""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING

from mod_edge.errors import BackendError, ConfigError
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.native.package_faults import package_of

if TYPE_CHECKING:
    import onnxruntime

_has_pool = False
_chosen_threads: int | None = None
FLOAT_ACCURACY = "1"
ALREADY_MADE = ("already been created", "already been registered")
NUMPY_DTYPES = {"float": "float32", "double": "float64"}  # where ONNX Runtime's names differ


def set_num_threads(count: int) -> None:
    """Choose the size of the process's thread pool, before its first session.

    Raises:
        ConfigError: the pool has another size already.
    """
    global _chosen_threads
    if _has_pool and count != num_threads():
        raise ConfigError(
            f"ONNX Runtime has {num_threads()} threads in this process already, wanted {count}; "
            "set the number before the first bundle is opened"
        )
    _chosen_threads = count


def num_threads() -> int:
    """Threads of the pool: what `set_num_threads` chose, else one per usable core."""
    return _chosen_threads or usable_cores()


def session_options(*, shares_arena: bool = True) -> "onnxruntime.SessionOptions":
    """Options for a session on the shared pool and arena, which the first call creates.

    Without `shares_arena` the session has arenas of its own, as one on a GPU needs; the CUDA
    libraries are loaded for it.

    Raises:
        BackendError: this onnxruntime is too old to share threads.
    """
    import onnxruntime

    global _has_pool
    if not shares_arena:
        _load_cuda_libraries()
    if not _has_pool:
        if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
            raise BackendError(
                f"onnxruntime {onnxruntime.__version__} is too old, wanted 1.23 or newer, where "
                f"sessions can share threads: pip install --upgrade {package_of('onnxruntime')}"
            )
        _share(lambda: onnxruntime.set_global_thread_pool_sizes(num_threads(), 1))
        arena = onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        )
        _share(lambda: onnxruntime.create_and_register_allocator(arena, None))
        _has_pool = True
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", str(int(shares_arena)))
    # DequantizeLinear before MatMul is fused to MatMulNBits, which would round activations to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", FLOAT_ACCURACY)
    return options


@cache
def _load_cuda_libraries() -> None:
    """Load the CUDA libraries that pip installed: ONNX Runtime itself does not look for those.

    What is missing is left to the session, whose error names it.
    """
    import onnxruntime

    with redirect_stdout(StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()


def _share(create: Callable[[], None]) -> None:
    """Create something of the process, or use what the program has created already."""
    try:
        create()
    except Exception as exc:  # onnxruntime raises bare pybind exceptions
        if not any(reason in str(exc) for reason in ALREADY_MADE):
            raise


def names_dtypes_dims(
    values: Sequence["onnxruntime.NodeArg"],
) -> set[tuple[str, str, tuple[int | str, ...]]]:
    """A session's inputs or outputs as (name, numpy dtype, dims), to compare with a signature."""
    return {(value.name, _numpy_dtype(value.type), tuple(value.shape)) for value in values}


def _numpy_dtype(onnx_type: str) -> str:
    """The dtype in an ONNX type: float32 in "tensor(float)"."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return NUMPY_DTYPES.get(name, name)
