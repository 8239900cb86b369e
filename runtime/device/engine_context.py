"""One TensorRT context and its bindings."""

from collections.abc import Mapping
from typing import Any

from mod_edge.errors import BackendError
from mod_edge.native.trt import is_capturable
from mod_edge.plan.signature import GraphSignature


class EngineContext:
    """Runs one engine on one stream in one optimization profile; see `GraphContext`."""

    def __init__(self, signature: GraphSignature, context: Any, stream: int) -> None:
        """Wrap `context`, whose profile and scratch memory are set."""
        self.signature = signature
        self.native = context
        self._stream = stream

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can capture it as bound, according to TensorRT."""
        return is_capturable(self.native, self._stream)

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """See `GraphContext`; shapes are set for inputs only."""
        for spec in self.signature.inputs:
            shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims)
            if not self.native.set_input_shape(spec.name, shape):
                raise self._error(f"rejects the shape {shape} of {spec.name!r}")
        for spec in (*self.signature.inputs, *self.signature.outputs):
            if not self.native.set_tensor_address(spec.name, addresses[spec.name]):
                raise self._error(f"rejects the address of {spec.name!r}")

    def enqueue(self) -> None:
        """See `GraphContext`; TensorRT's log has the reason of a failure."""
        if not self.native.execute_async_v3(self._stream):
            raise self._error("does not run")

    def _error(self, what: str) -> BackendError:
        return BackendError(
            f"the engine of {self.signature.name} {what}; see TensorRT's log above, build the "
            "engines again, and report it if that does not help"
        )
