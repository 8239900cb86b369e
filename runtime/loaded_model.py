"""The contract between a session and a backend: ONNX Runtime, TensorRT or the PyTorch reference.

A `LoadedModel` holds a bundle's graphs, weights and scratch memory on a backend. A `StreamState`
holds what belongs to one stream: its KV cache, the first copy of its sink's keys, its frame
embeddings, and bindings to them. Any number of streams can take turns on one model, step by step,
on one thread. What a step computed is read before another stream's step. Frames of several streams
can be encoded together, by the model; each stream then copies its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mod_edge.config import ModelConfig
from mod_edge.errors import BackendError, CacheError
from mod_edge.native.cuda_driver import CudaDriver
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]


class FrameEmbeds(Protocol):
    """Frame embeddings (F, N, D) in host or device memory; slices are frames.

    Only streams of the model that made them can read them. A numpy array qualifies.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, frames: slice, /) -> "FrameEmbeds": ...


@dataclass(frozen=True)
class StreamLimits:
    """The largest cache and step of a stream.

    Attributes:
        capacity: rows of its cache.
        max_step_tokens: largest T of a step, frames included.
        frames_per_step: largest F of a step and of `StreamState.encode`.
        frames_of_all_streams: largest F of `LoadedModel.encode`, if that is more.
        captured_shapes: of steps, on a GPU: the most that have a CUDA graph at one time.
    """

    capacity: Rows
    max_step_tokens: int
    frames_per_step: int
    frames_of_all_streams: int = 1
    captured_shapes: int = 8  # a stream repeats few: a frame, a token, the usual prefixes

    @property
    def frames_per_encode(self) -> int:
        """The largest F of the vision graph."""
        return max(self.frames_per_step, self.frames_of_all_streams)


class _Closing:
    """A context manager that calls `close` at its end."""

    def close(self) -> None:
        """Release all resources; the object cannot be used afterwards."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class StreamState(_Closing, ABC):
    """One stream on a model: computes its steps and holds its KV cache; a context manager.

    Returned arrays lie in the model's scratch memory: they are valid until the next call of any
    stream of that model, frame embeddings until the next `encode` of this stream.
    """

    name: str
    """Backend and device, for people."""

    @abstractmethod
    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """Frame embeddings (F, N, D) of RGB frames (F, I, I, 3); waits until they are computed."""

    def copy_embeds(self, embeds: FrameEmbeds) -> FrameEmbeds:
        """A copy of embeddings of `LoadedModel.encode` in memory of this stream.

        It is valid until this stream's next `encode` or `copy_embeds`.
        """
        return np.array(embeds)

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
            frame_embeds: of F frames, from `encode`, or None if F is 0.
            position: stream position of the step's first token.
            past: rows of the cache that hold the past; rows after them, as a step that was taken
                back leaves them, are overwritten.

        Raises:
            CacheError: the step does not fit after `past`.
        """

    @abstractmethod
    def logits(self, rows: Sequence[int]) -> Float32Array:
        """(len(rows), V) logits of these rows of the last step."""

    @abstractmethod
    def evict(self, eviction: Eviction) -> None:
        """Drop rows from every layer's cache and rebase the sink.

        With `eviction.room` the rows after the sink are left free. They must be filled by steps
        that start at `past=eviction.sink`, and `evict` be called again with the sink that includes
        them and no room, before any other step.
        """

    @property
    @abstractmethod
    def kept(self) -> Mapping[int, Int64Array]:
        """By MoD layer, the positions (F, K) within each frame that the last step computed."""

    @property
    def warnings(self) -> list[str]:
        """For the user, about how the stream runs, one sentence each."""
        return []

    def __enter__(self) -> "StreamState":
        return self


class WrappedStream(StreamState):
    """Forwards every call to another stream: a base class for observing or replacing some."""

    def __init__(self, inner: StreamState) -> None:
        """Wrap `inner`, which is closed with this one."""
        self.name = inner.name
        self.inner = inner

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """See `StreamState`."""
        return self.inner.encode(frames)

    def copy_embeds(self, embeds: FrameEmbeds) -> FrameEmbeds:
        """See `StreamState`."""
        return self.inner.copy_embeds(embeds)

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
    """Graphs, weights and scratch memory of a step on a backend; a context manager."""

    name: str
    """Backend and device, for people."""

    driver: CudaDriver | None = None
    """The GPU that it runs on; None on the CPU."""

    num_steps = 0
    """Steps of all streams; the scratch memory has the results of the last one."""

    @property
    def graph_seconds(self) -> float | None:
        """Seconds so far in graphs, or waiting for a GPU that runs them; None if not counted."""
        return None

    @abstractmethod
    def open_stream(self) -> StreamState:
        """A stream with an empty cache; close it before the model.

        Raises:
            BackendError: the device cannot run another stream.
            CacheError: not enough memory for its cache.
        """

    @abstractmethod
    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        """Frame embeddings (F, N, D) of RGB frames (F, I, I, 3), which may be of several streams.

        Waits until they are computed. They lie in the model's scratch memory until the next
        `encode` of the model or of one of its streams.
        """

    def with_layers(
        self, config: ModelConfig, order: Sequence[int], capacity: Rows
    ) -> "LoadedModel":
        """A model of other layers on the same graphs and scratch memory.

        Closing this model closes both. What a step of one has computed is read before a step of the
        other: neither notices that the other has overwritten it.

        Args:
            config: of the new model.
            order: for each layer of it, the index of this model's layer that computes it; a MoD
                layer at most once, because it has one buffer for its selection.
            capacity: rows of the new model's streams' caches.

        Raises:
            BackendError: this backend has no graph for each layer.
        """
        raise BackendError(f"{self.name} runs its layers in their own order only")

    def __enter__(self) -> "LoadedModel":
        return self


def require_last_step(model: LoadedModel, step: int) -> None:
    """Check that the scratch memory has the results of this step, as `num_steps` counts them.

    Raises:
        CacheError: another stream has stepped since.
    """
    if step != model.num_steps:
        raise CacheError(
            "another stream of this model has stepped since; read logits and kept tokens right "
            "after the step"
        )


def require_room(layout: StepLayout, past: Rows, capacity: Rows, max_step_tokens: int) -> Rows:
    """The rows that the step adds after `past`; call it before every step.

    Graphs do not check bounds: rows past the end of the cache are dropped without an error, or
    overwrite other memory.

    Raises:
        CacheError: the step is longer than planned, or does not fit in the cache.
    """
    added = Rows(layout.num_tokens, layout.num_rows)
    if layout.num_tokens > max_step_tokens or not past.plus(added).fits(capacity):
        raise CacheError(
            f"a step of {added.dense} tokens ({added.mod} rows in MoD layers) after "
            f"{past.dense} ({past.mod}) does not fit: the cache has {capacity.dense} "
            f"({capacity.mod}) rows, a step at most {max_step_tokens} tokens"
        )
    return added
