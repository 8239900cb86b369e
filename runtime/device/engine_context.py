"""One TensorRT context with what is bound to it."""

from collections.abc import Mapping
from typing import Any

from mod_edge.errors import BackendError
from mod_edge.native.trt import is_capturable
from mod_edge.plan.signature import GraphSignature


class EngineContext:
    """Runs one engine on one stream within one optimization profile."""

    def __init__(self, signature: GraphSignature, context: Any, stream: int) -> None:
        """Wrap `context`, which has its profile and its scratch memory."""
        self.signature = signature
        self.native = context
        self._stream = stream

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can hold what it is about to run, as far as TensorRT says."""
        return is_capturable(self.native, self._stream)

    def bind(self, addresses: Mapping[str, int], letters: Mapping[str, int]) -> None:
        """Say where every tensor lies and how large the inputs are.

        Args:
            addresses: by tensor name, of memory that stays until what is enqueued has run; may
                name more than the graph has.
            letters: sizes of the signature's dynamic dims.

        Raises:
            BackendError: TensorRT refuses a shape or an address.
        """
        for spec in self.signature.inputs:
            shape = tuple(letters[dim] if isinstance(dim, str) else dim for dim in spec.dims)
            if not self.native.set_input_shape(spec.name, shape):
                raise self._error(f"refuses the shape {shape} of {spec.name!r}")
        for spec in (*self.signature.inputs, *self.signature.outputs):
            if not self.native.set_tensor_address(spec.name, addresses[spec.name]):
                raise self._error(f"refuses an address for {spec.name!r}")

    def enqueue(self) -> None:
        """Run what is bound, behind all that the stream has to do before.

        Raises:
            BackendError: TensorRT cannot; its log has the reason.
        """
        if not self.native.execute_async_v3(self._stream):
            raise self._error("does not run")

    def _error(self, what: str) -> BackendError:
        return BackendError(
            f"the engine of {self.signature.name} {what}; TensorRT's log above says why: build the "
            "engines again, and report it if that does not help"
        )
