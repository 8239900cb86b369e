"""Return of freed memory to the system, which glibc otherwise keeps for later use."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Let the C library return what it keeps; does nothing where it has no such function.

    ONNX Runtime allocates and frees a copy of the weights where it converts them. glibc keeps such
    blocks once some were freed: a bundle with int8 weights then holds a quarter more than it needs.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
