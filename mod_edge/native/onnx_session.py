"""ONNX Runtime's one thread pool of the process, which all sessions here share.

With a pool each, a chain of 16 layer sessions ran 4.5 times slower. The pool is the process's: once
it is there, ONNX Runtime refuses any session with threads of its own, so every session that this
package opens takes its options from here, and a program with other models sets
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
    """Options for a session on the shared pool, which is made at the first call."""
    import onnxruntime

    global _has_pool
    if not _has_pool:
        try:
            onnxruntime.set_global_thread_pool_sizes(usable_cores(), 1)
        except Exception as exc:  # pybind gives its failures no type of their own
            if "already been created" not in str(exc):
                raise
            # The program made a pool before us: it is shared all the same.
        _has_pool = True
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    return options


def names_dtypes_dims(
    values: Sequence["onnxruntime.NodeArg"],
) -> set[tuple[str, str, tuple[int | str, ...]]]:
    """A session's inputs or outputs as (name, numpy's dtype, dims), to hold against a signature."""
    return {(value.name, _numpy_dtype(value.type), tuple(value.shape)) for value in values}


def _numpy_dtype(onnx_type: str) -> str:
    """Of "tensor(float)" it is "float32"."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return NUMPY_DTYPES.get(name, name)


def usable_cores() -> int:
    """Cores that this process may use, which a container can make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
