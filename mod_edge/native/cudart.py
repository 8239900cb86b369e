"""NVIDIA's CUDA runtime through cuda-python: loaded in one place, its failures made errors."""

from collections.abc import Callable
from typing import Any

from mod_edge.errors import BackendError
from mod_edge.native.installed import install_command


def load_cudart(failure: str) -> Any:
    """`cuda.bindings.runtime`.

    Args:
        failure: how the error's sentence begins, up to "does not load".

    Raises:
        BackendError: cuda-python is not installed, or does not load.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as exc:
        raise BackendError(
            f"{failure} ({exc}); install it with: {install_command('rtx')} "
            "(the extra tensorrt instead of rtx on a Jetson)"
        ) from exc
    return runtime


def call(cudart: Any, name: str, *arguments: object, explain: Callable[[str, str], str]) -> Any:
    """CUDA's answer, if it has one besides its status.

    Args:
        cudart: from `load_cudart`, or what stands for it.
        name: of the function.
        arguments: its arguments.
        explain: the error's message, from the function's name and CUDA's name of the error.

    Raises:
        BackendError: CUDA refuses.
    """
    status, *answers = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        cudart.cudaGetLastError()  # or the next call would report it again
        raise BackendError(explain(name, status.name))
    return answers[0] if len(answers) == 1 else answers
