"""The contract between a session and whatever computes: ONNX Runtime, TensorRT or the reference.

A `LoadedModel` is a bundle's graphs, weights and scratch memory on a backend, held once. A
`StreamState` is what one stream adds: its KV cache, the first copy of its sink's keys, and the
bindings to them. Any number of streams take turns on one model, call by call, on one thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mod_edge.errors import CacheError
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]


class FrameEmbeds(Protocol):
    """Frame embeddings (F, N, D) wherever the stream keeps them; a slice is a run of frames.

    Only the stream that made them reads them. A numpy array is one.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, frames: slice, /) -> "FrameEmbeds": ...


@dataclass(frozen=True)
class StreamLimits:
    """What a stream may ask of a model.

    Attributes:
        capacity: rows of its cache.
        max_step_tokens: T at most, the step's frames included.
        frames_per_step: F at most, in a step and in `encode`.
    """

    capacity: Rows
    max_step_tokens: int
    frames_per_step: int


class _Closing:
    """A context manager that releases what it holds at its end."""

    def close(self) -> None:
        """Release what it holds; it cannot be used afterwards."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class StreamState(_Closing, ABC):
    """One stream on a model: computes its steps and holds its KV cache; a context manager.

    Arrays that a method returns lie in the model's scratch memory: they are valid until the next
    call of any stream of that model, frame embeddings until the next `encode` of this one.
    """

    name: str
    """Backend and device, for the one line that says which is used."""

    @abstractmethod
    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """Frame embeddings (F, N, D) of RGB frames (F, I, I, 3), computed when this returns."""

    @abstractmethod
    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        """Run one step through all decoder layers and append it to the cache.

        Args:
            layout: the step's shape.
            token_ids: X ids of the text tokens, in stream order.
            frame_embeds: of F frames, from `encode`, or None where F is 0.
            position: stream position of the step's first token.
            past: rows of the cache that hold the past; what a step that was taken back wrote after
                them is overwritten.

        Raises:
            CacheError: the step does not fit after `past`.
        """

    @abstractmethod
    def logits(self, rows: Sequence[int]) -> Float32Array:
        """(len(rows), V) of these rows of the step that ran last."""

    @abstractmethod
    def evict(self, eviction: Eviction) -> None:
        """Drop rows from every layer's cache and rebase the sink."""

    @property
    @abstractmethod
    def kept(self) -> Mapping[int, Int64Array]:
        """By MoD layer, the positions (F, K) within each frame that the last step computed."""

    @property
    def warnings(self) -> list[str]:
        """What the user should know of how it runs, one sentence each."""
        return []

    def __enter__(self) -> "StreamState":
        return self


class WrappedStream(StreamState):
    """Passes everything on to another stream: a base for what watches or replaces a part of it."""

    def __init__(self, inner: StreamState) -> None:
        """Wrap `inner`, which is closed with this one."""
        self.name = inner.name
        self.inner = inner

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """See `StreamState`."""
        return self.inner.encode(frames)

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        """See `StreamState`."""
        self.inner.step(layout, token_ids, frame_embeds, position=position, past=past)

    def logits(self, rows: Sequence[int]) -> Float32Array:
        """See `StreamState`."""
        return self.inner.logits(rows)

    def evict(self, eviction: Eviction) -> None:
        """See `StreamState`."""
        self.inner.evict(eviction)

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        """See `StreamState`."""
        return self.inner.kept

    @property
    def warnings(self) -> list[str]:
        """See `StreamState`."""
        return self.inner.warnings

    def close(self) -> None:
        """See `StreamState`."""
        self.inner.close()


class LoadedModel(_Closing, ABC):
    """Graphs and weights on a backend, and the scratch memory of a step; a context manager."""

    name: str
    """Backend and device, for people."""

    @abstractmethod
    def open_stream(self) -> StreamState:
        """A stream with an empty cache; close it before the model.

        Raises:
            CacheError: there is not enough memory for its cache.
        """

    def __enter__(self) -> "LoadedModel":
        return self


def require_room(layout: StepLayout, past: Rows, capacity: Rows, max_step_tokens: int) -> Rows:
    """The rows that the step adds behind `past`.

    Graphs write where they are told to, and what does not fit is dropped without an error, or
    worse: so this comes before every step.

    Raises:
        CacheError: the step is longer than planned, or leaves the cache.
    """
    added = Rows(layout.num_tokens, layout.num_rows)
    if layout.num_tokens > max_step_tokens or not past.plus(added).fits(capacity):
        raise CacheError(
            f"a step of {added.dense} tokens ({added.mod} rows in MoD layers) behind "
            f"{past.dense} ({past.mod}) does not fit: the cache has {capacity.dense} "
            f"({capacity.mod}) rows, a step at most {max_step_tokens} tokens"
        )
    return added
