"""What a bundle is held against: the running PyTorch model, or the golden files that it left."""

from abc import ABC, abstractmethod

from mod_edge.plan.signature import GraphSignature
from mod_edge.verification.graph_check import GraphResult
from mod_edge.verification.recording import GraphRecording, StreamTrace
from mod_edge.verification.stream_check import Follow, StreamResult


class Reference(ABC):
    """Recorded inputs and right outputs of every graph, and of the whole stream.

    Attributes:
        name: for people.
        trace: the whole stream; None where it was not saved.
        follow: see `check_stream`; None where the reference cannot run.
    """

    name: str
    trace: StreamTrace | None
    follow: Follow | None = None

    @abstractmethod
    def recording(self, signature: GraphSignature) -> GraphRecording | None:
        """One graph's recorded steps; None where they were not saved."""

    def graph_in_dtype(self, recording: GraphRecording) -> GraphResult | None:
        """What the graph's dtype costs by itself: PyTorch computing in it. None where it cannot."""
        return None

    def stream_in_dtype(self) -> StreamResult | None:
        """The same for the whole stream."""
        return None
