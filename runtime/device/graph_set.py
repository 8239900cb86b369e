"""What a device runner needs of who computes: TensorRT's engines or ONNX Runtime's sessions."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class GraphContext(Protocol):
    """One graph with its bindings, on the runner's stream."""

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph can hold what it is about to run."""

    def bind(self, addresses: Mapping[str, int], letters: Mapping[str, int]) -> None:
        """Say where every tensor lies and how large it is.

        Args:
            addresses: by tensor name, of memory that stays until what is enqueued has run; may
                name more than the graph has.
            letters: sizes of the signature's dynamic dims.

        Raises:
            BackendError: a shape or an address is refused.
        """

    def enqueue(self) -> None:
        """Run what is bound, behind all that the stream has to do before.

        Raises:
            BackendError: it cannot.
        """


class GraphSet(Protocol):
    """All graphs of a bundle in device memory."""

    @property
    def can_capture(self) -> bool:
        """Whether contexts can be captured into a CUDA graph at all."""

    @property
    def warnings(self) -> Sequence[str]:
        """What users should know."""

    def context(self, name: str, profile: str, *, is_captured: bool = False) -> GraphContext:
        """A new context of the graph `name` for steps of the optimization profile `profile`.

        Raises:
            BackendError: it cannot be made.
        """

    def close(self) -> None:
        """Let go of all graphs."""
