"""The contract between a `DeviceModel` and its graphs: TensorRT engines or ONNX sessions."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class GraphContext(Protocol):
    """One graph and its bindings, on the model's CUDA stream."""

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can capture it as bound."""

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        """Set the address and shape of every tensor.

        Args:
            addresses: by tensor name, of memory that must stay valid until the enqueued work has
                run; names that the graph does not have are ignored.
            sizes: of the signature's dynamic dims, by letter.

        Raises:
            BackendError: a shape or an address is rejected.
        """

    def enqueue(self) -> None:
        """Run the graph as bound, after all work already on the stream.

        Raises:
            BackendError: it does not run.
        """


class GraphSet(Protocol):
    """All graphs of a bundle in device memory."""

    @property
    def can_capture(self) -> bool:
        """Whether any of its contexts can be captured into a CUDA graph."""

    @property
    def warnings(self) -> Sequence[str]:
        """For the user, one sentence each."""

    def context(self, name: str, profile: str, *, is_captured: bool = False) -> GraphContext:
        """A new context of the graph `name` for steps of the optimization profile `profile`.

        Raises:
            BackendError: the context cannot be made.
        """

    def close(self) -> None:
        """Release all graphs."""
