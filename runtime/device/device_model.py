"""A bundle on an NVIDIA GPU: all tensors stay in device memory, whichever library runs the graphs.

A step is one upload, one copy per run of text or frame, the layers, and in `delta` one copy per
cache buffer; the host waits for none of these. It waits in `encode`, so that vision is timed
separately, in `logits`, and in `kept`.

The model holds engines, scratch memory and the inputs of a step. A stream holds its cache, contexts
and CUDA graphs, because contexts and graphs contain the cache's addresses. All work goes to one
CUDA stream, so steps of several streams run one after another.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from mod_edge.bundle.bundle import Bundle
from mod_edge.bundle.shape_ranges import ANY
from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver, PinnedBlock, aligned
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.signature import layer_name
from mod_edge.plan.targets import ITEM_BYTES
from mod_edge.runtime.device.device_cache import DeviceCache, sink_angles
from mod_edge.runtime.device.graph_set import GraphContext, GraphSet
from mod_edge.runtime.device.step_chain import StepChain
from mod_edge.runtime.device.step_inputs import DeviceFrames, StepInputs, StepShape
from mod_edge.runtime.embedding import Embedding
from mod_edge.runtime.loaded_model import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    LoadedModel,
    StreamLimits,
    StreamState,
    UInt8Array,
    require_last_step,
    require_room,
)


@dataclass(frozen=True)
class Exchange:
    """Device memory and pinned host memory of the same size."""

    device: int
    host: PinnedBlock


class DeviceModel(LoadedModel):
    """A bundle on a device, in either dialect."""

    def __init__(
        self,
        bundle: Bundle,
        limits: StreamLimits,
        *,
        name: str,
        driver: CudaDriver,
        open_graphs: Callable[[], GraphSet],
    ) -> None:
        """Load all graphs and allocate the memory of a step.

        Args:
            bundle: with every layer.
            limits: of every stream.
            name: backend and device, for people.
            driver: the device; closed with the model, also on failure.
            open_graphs: loads the bundle's graphs for that device and those limits.

        Raises:
            BackendError: a graph does not load.
            CacheError: not enough memory on the device.
        """
        config, lowering = bundle.config, bundle.lowering
        text = config.text_config
        self.name = name
        self.config, self.lowering, self.limits = config, lowering, limits
        self.driver: CudaDriver = driver
        assert lowering.capacity in (None, limits.capacity), "in_place graphs carry their capacity"
        self.layer_names = [layer_name(index) for index in range(text.num_hidden_layers)]
        self.row_bytes = text.hidden_size * ITEM_BYTES[lowering.dtype]
        self.frame_bytes = config.frame_num_tokens * self.row_bytes
        with ExitStack() as release:  # in reverse order, also if this fails half way
            release.callback(driver.close)
            self._take_buffers()
            self.inputs = StepInputs(
                driver,
                Embedding(bundle.folder, config, lowering),
                config,
                max_step_tokens=limits.max_step_tokens,
            )
            self.angles = sink_angles(driver, config)
            self.graphs = open_graphs()
            release.callback(self.graphs.close)
            self._contexts = {
                graph: self.graphs.context(graph, ANY) for graph in ("vision", "head", "rebase")
            }
            release.callback(self._contexts.clear)
            release.callback(driver.drain)
            self._release = release.pop_all()

    @property
    def graph_seconds(self) -> float:
        return self.driver.waited_s

    @property
    def rebase(self) -> GraphContext:
        """The graph that rotates a sink's keys."""
        return self._contexts["rebase"]

    def open_stream(self) -> "DeviceStream":
        return DeviceStream(self)

    def with_layers(
        self, config: ModelConfig, order: Sequence[int], capacity: Rows
    ) -> "DeviceModel":
        other = copy.copy(self)
        other.config = config
        other.limits = replace(self.limits, capacity=capacity)
        other.layer_names = [self.layer_names[layer] for layer in order]
        other._kept_places = {
            place: self._kept_places[layer]
            for place, layer in enumerate(order)
            if layer in self._kept_places
        }
        return other

    def close(self) -> None:
        self._release.close()

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        return self.encode_into(frames, self._frame_embeds)

    def encode_into(self, frames: UInt8Array, embeds: int) -> "DeviceFrames":
        """The embeddings (F, N, D) of RGB frames (F, I, I, 3), written to the address `embeds`."""
        host = self._pixels.host
        np.copyto(host.array[: frames.nbytes].reshape(frames.shape), frames)
        self.driver.upload(self._pixels.device, host.address, frames.nbytes)
        vision = self._contexts["vision"]
        vision.bind({"frames": self._pixels.device, "frame_embeds": embeds}, {"F": len(frames)})
        vision.enqueue()
        self.driver.synchronize()
        return DeviceFrames(embeds, len(frames), self.frame_bytes)

    def logits(self, rows: Sequence[int]) -> Float32Array:
        """(len(rows), V) logits of these rows of the last step; waits for the device."""
        final = self.hidden[self.config.text_config.num_hidden_layers % 2]
        for place, row in enumerate(rows):
            self.driver.copy(
                self._head_rows + place * self.row_bytes,
                final + row * self.row_bytes,
                self.row_bytes,
            )
        head = self._contexts["head"]
        head.bind(
            {"hidden": self._head_rows, "logits": self._logits_exchange.device}, {"T": len(rows)}
        )
        head.enqueue()
        # Copied out of pinned memory, which is freed when the model is closed.
        logits = self._logits[: len(rows)]
        host = self._logits_exchange.host
        self.driver.download(host.address, self._logits_exchange.device, logits.nbytes)
        self.driver.synchronize()
        np.copyto(logits, host.array[: logits.nbytes].view(np.float32).reshape(logits.shape))
        return logits

    def kept(self, num_frames: int) -> Mapping[int, Int64Array]:
        """By MoD layer, the positions (F, K) that the last step kept; waits for the device."""
        shape = (num_frames, self.config.num_kept)
        host = self._kept.host
        self.driver.download(host.address, self._kept.device, host.array.nbytes)
        self.driver.synchronize()
        return {
            layer: np.ndarray(shape, np.int64, host.array, place).copy()
            for layer, place in self._kept_places.items()
        }

    def kept_address(self, layer: int) -> int | None:
        """Where a MoD layer writes its selection; None for a dense layer."""
        place = self._kept_places.get(layer)
        return None if place is None else self._kept.device + place

    def _take_buffers(self) -> None:
        text, limits = self.config.text_config, self.limits
        most_frames, side = limits.frames_per_step, self.config.vision_config.image_size
        self.hidden = [
            self.driver.malloc(limits.max_step_tokens * self.row_bytes, "hidden states")
            for _ in range(2)  # layers alternate: each reads one and writes the other
        ]
        self._pixels = self._exchange(limits.frames_per_encode * side * side * 3, "frames")
        self._frame_embeds = self.driver.malloc(
            limits.frames_per_encode * self.frame_bytes, "frames"
        )
        self._head_rows = self.driver.malloc(most_frames * self.row_bytes, "hidden states")
        self._logits = np.empty((most_frames, text.vocab_size), np.float32)
        self._logits_exchange = self._exchange(self._logits.nbytes, "logits")
        kept_bytes = aligned(most_frames * self.config.num_kept * ITEM_BYTES["int64"])
        self._kept_places = {
            layer: order * kept_bytes for order, layer in enumerate(self.config.mod_layers)
        }
        self._kept = self._exchange(len(self._kept_places) * kept_bytes, "selections")

    def _exchange(self, size_bytes: int, purpose: str) -> Exchange:
        return Exchange(self.driver.malloc(size_bytes, purpose), self.driver.pinned(size_bytes))


class DeviceStream(StreamState):
    """One stream's cache on a `DeviceModel`, with contexts and CUDA graphs bound to it."""

    def __init__(self, model: DeviceModel) -> None:
        """Allocate an empty cache and make a context for every layer.

        Raises:
            BackendError: a context cannot be made.
            CacheError: not enough memory on the device.
        """
        config, limits, driver = model.config, model.limits, model.driver
        self.name = model.name
        self._model = model
        self._num_frames = 0
        self._step = model.num_steps
        with ExitStack() as release:
            self._cache = DeviceCache(
                driver,
                config,
                model.lowering,
                limits.capacity,
                max_step_tokens=limits.max_step_tokens,
                angles=model.angles,
            )
            release.callback(self._cache.close)
            embeds_bytes = limits.frames_per_step * model.frame_bytes
            self._frame_embeds = driver.malloc(embeds_bytes, "frames")
            release.callback(driver.free, self._frame_embeds)
            self._chain = StepChain(
                driver,
                model.graphs,
                model.layer_names,
                self._bind,
                max_frames=limits.frames_per_step,
                max_graphs=limits.captured_shapes,
            )
            release.callback(self._chain.close)
            release.callback(driver.drain)
            self._release = release.pop_all()

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        return self._model.encode_into(frames, self._frame_embeds)

    def copy_embeds(self, embeds: FrameEmbeds) -> FrameEmbeds:
        assert isinstance(embeds, DeviceFrames), "from encode"
        self._model.driver.copy(
            self._frame_embeds, embeds.address, embeds.num_frames * embeds.frame_bytes
        )
        return replace(embeds, address=self._frame_embeds)

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        model, limits = self._model, self._model.limits
        added = require_room(layout, past, limits.capacity, limits.max_step_tokens)
        assert frame_embeds is None or isinstance(frame_embeds, DeviceFrames), "from encode"
        model.inputs.write(layout, token_ids, position=position, past=past)
        model.inputs.assemble(layout, frame_embeds, model.hidden[0])
        model.num_steps += 1
        self._step = model.num_steps
        bucket = self._cache.bucket(past)
        self._chain.run(StepShape(layout.text_index.size, layout.num_frames, bucket))
        self._cache.append(past, added)
        self._num_frames = layout.num_frames

    def logits(self, rows: Sequence[int]) -> Float32Array:
        require_last_step(self._model, self._step)
        logits = self._model.logits(rows)
        self._chain.release_retired()
        return logits

    def evict(self, eviction: Eviction) -> None:
        self._cache.evict(eviction, self._model.rebase)

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        require_last_step(self._model, self._step)
        return self._model.kept(self._num_frames)

    @property
    def warnings(self) -> list[str]:
        return [*self._model.graphs.warnings, *self._chain.warnings]

    def close(self) -> None:
        self._release.close()

    def _bind(self, contexts: Sequence[GraphContext], shape: StepShape) -> None:
        """Bind every layer's tensors for a step of that shape."""
        model, config = self._model, self._model.config
        num_text, num_frames, past = shape
        sizes = {
            "X": num_text,
            "F": num_frames,
            "T": num_text + num_frames * config.frame_num_tokens,
            "R": num_text + num_frames * config.num_kept,
        }
        for index, context in enumerate(contexts):
            kept = model.kept_address(index)
            addresses = {
                "hidden": model.hidden[index % 2],
                "new_hidden": model.hidden[(index + 1) % 2],
                **model.inputs.addresses(shape, is_mod=kept is not None),
                **self._cache.addresses(index),
            }
            if kept is not None:
                addresses["kept"] = kept
            if past is not None:
                sizes["S"] = past.dense if kept is None else past.mod
            context.bind(addresses, sizes)
