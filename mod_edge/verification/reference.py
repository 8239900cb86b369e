"""The reference of a comparison: the PyTorch model, or golden files saved from it."""

from abc import ABC, abstractmethod

from mod_edge.bundle.bundle import Bundle
from mod_edge.plan.signature import GraphSignature
from mod_edge.verification.graph_check import GraphResult
from mod_edge.verification.recording import GraphRecording, StreamTrace
from mod_edge.verification.stream_check import Follow, StreamResult
from mod_edge.verification.tolerances import StreamQuantizingCost, rounds_activations


def is_judged_by_cost(bundle: Bundle) -> bool:
    """Whether the bundle's stream is judged by what quantizing costs it.

    It is where activations are rounded; a bundle without all layers has no stream.
    """
    return bundle.is_whole and rounds_activations(bundle.lowering)


class Reference(ABC):
    """Recorded inputs and expected outputs of every graph and of the whole stream.

    Attributes:
        name: for display.
        trace: the whole stream; None if it was not saved.
        follow: see `check_stream`; None if the reference cannot run.
    """

    name: str
    trace: StreamTrace | None
    follow: Follow | None = None

    @property
    def stream_cost(self) -> StreamQuantizingCost | None:
        """What quantizing costs the stream; None if it is not judged by that, or not saved."""
        return None

    @abstractmethod
    def recording(self, signature: GraphSignature) -> GraphRecording | None:
        """One graph's recorded steps; None if they were not saved."""

    def graph_in_dtype(self, recording: GraphRecording) -> GraphResult | None:
        """The error of PyTorch in the graph's dtype; None for float32 or without PyTorch."""
        return None

    def stream_in_dtype(self) -> StreamResult | None:
        """The same for the whole stream."""
        return None
