"""Options for ONNX Runtime sessions that share one thread pool per process.

With one pool per session, a chain of 16 layer sessions ran 4.5 times slower. Once the process has
a global pool, ONNX Runtime rejects sessions with their own threads: every session of this package
takes its options from here, and a program with other models must set
`use_per_session_threads = False` on theirs.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

_has_pool = False
NUMPY_DTYPES = {"float": "float32", "double": "float64"}  # where ONNX Runtime's names differ


def session_options() -> "onnxruntime.SessionOptions":
    """Options for a session on the shared pool, which the first call creates."""
    import onnxruntime

    global _has_pool
    if not _has_pool:
        try:
            onnxruntime.set_global_thread_pool_sizes(usable_cores(), 1)
        except Exception as exc:  # onnxruntime raises bare pybind exceptions
            if "already been created" not in str(exc):
                raise
            # the program has created the pool already: share it
        _has_pool = True
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return options


def names_dtypes_dims(
    values: Sequence["onnxruntime.NodeArg"],
) -> set[tuple[str, str, tuple[int | str, ...]]]:
    """A session's inputs or outputs as (name, numpy dtype, dims), to compare with a signature."""
    return {(value.name, _numpy_dtype(value.type), tuple(value.shape)) for value in values}


def _numpy_dtype(onnx_type: str) -> str:
    """The dtype in an ONNX type: float32 in "tensor(float)"."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return NUMPY_DTYPES.get(name, name)


def usable_cores() -> int:
    """Cores that this process may use; a container may limit them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
