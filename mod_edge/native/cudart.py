"""Load the CUDA runtime through cuda-python and turn its status codes into errors."""

from collections.abc import Callable
from typing import Any

from mod_edge.errors import BackendError
from mod_edge.native.installed import install_command


def load_cudart(failure: str) -> Any:
    """`cuda.bindings.runtime`.

    Args:
        failure: beginning of the error message, up to "does not load".

    Raises:
        BackendError: cuda-python is not installed, or does not load.
    """
    try:
        from cuda.bindings import runtime
    except Exception as exc:  # a broken native library may raise any exception
        raise BackendError(
            f"{failure} ({exc}); install it with: {install_command('rtx')} "
            "(on a Jetson as docs/jetson.md says: its driver needs an older cuda-python)"
        ) from exc
    return runtime


def call(cudart: Any, name: str, *arguments: object, explain: Callable[[str, str], str]) -> Any:
    """Call a CUDA function and return its results without the status.

    Args:
        cudart: from `load_cudart`, or a stand-in.
        name: of the function.
        arguments: its arguments.
        explain: makes the error message from the function's and CUDA's error name.

    Raises:
        BackendError: the status is not success.
    """
    status, *answers = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        cudart.cudaGetLastError()  # clears it, or the next call would report it again
        raise BackendError(explain(name, status.name))
    return answers[0] if len(answers) == 1 else answers
