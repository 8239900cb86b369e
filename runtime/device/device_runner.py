"""A bundle on an NVIDIA GPU: whoever computes its graphs, all between them is in device memory.

A step is one upload, one copy a run of text or a frame, the layers, and in `delta` one copy a cache
buffer; the host waits for nothing of it. It waits in `encode`, so that the vision graph's time is
told apart, in `logits`, and in `kept`, which is for who asks.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mod_edge.bundle.manifest import Manifest
from mod_edge.bundle.shape_ranges import ANY
from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver, PinnedBlock, aligned
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.plan.layout import StepLayout
from mod_edge.plan.signature import layer_name
from mod_edge.plan.targets import ITEM_BYTES
from mod_edge.runtime.device.device_cache import DeviceCache
from mod_edge.runtime.device.graph_set import GraphContext, GraphSet
from mod_edge.runtime.device.step_chain import StepChain
from mod_edge.runtime.device.step_inputs import DeviceFrames, StepInputs, StepLetters
from mod_edge.runtime.runner import (
    Float32Array,
    FrameEmbeds,
    Int64Array,
    Runner,
    SessionLimits,
    UInt8Array,
    require_room,
)


@dataclass(frozen=True)
class Exchange:
    """The same size of memory on the device and, pinned, on the host."""

    device: int
    host: PinnedBlock


class DeviceRunner(Runner):
    """Runs a bundle on a device, `in_place` and `delta` alike."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        config: ModelConfig,
        limits: SessionLimits,
        *,
        name: str,
        driver: CudaDriver,
        open_graphs: Callable[[], GraphSet],
    ) -> None:
        """Load all graphs and take all memory.

        Args:
            folder: a checked bundle with every layer.
            manifest: its manifest.
            config: its config.
            limits: cache rows and steps at most.
            name: what computes, for people.
            driver: the device; closed with the runner, also where this fails.
            open_graphs: loads the bundle's graphs for that device and those limits.

        Raises:
            BackendError: a graph does not load.
            CacheError: the device has not so much memory.
        """
        lowering, text = manifest.lowering, config.text_config
        self.name = name
        self._driver = driver
        self._config = config
        self._limits = limits
        self._num_frames = 0
        assert lowering.capacity in (None, limits.capacity), "in_place graphs carry their capacity"
        self._row_bytes = text.hidden_size * ITEM_BYTES[lowering.dtype]
        self._frame_bytes = config.frame_num_tokens * self._row_bytes
        with ExitStack() as release:  # from the last to the first, also where this fails half way
            release.callback(driver.close)
            self._take_buffers()
            self._inputs = StepInputs(
                driver, folder, config, lowering.dtype, max_step_tokens=limits.max_step_tokens
            )
            self._cache = DeviceCache(
                driver, config, lowering, limits.capacity, max_step_tokens=limits.max_step_tokens
            )
            self._graphs = open_graphs()
            release.callback(self._graphs.close)
            self._contexts = {
                graph: self._graphs.context(graph, ANY) for graph in ("vision", "head", "rebase")
            }
            release.callback(self._contexts.clear)
            layers = [layer_name(index) for index in range(text.num_hidden_layers)]
            self._chain = StepChain(
                driver, self._graphs, layers, self._bind, max_frames=limits.frames_per_step
            )
            release.callback(self._chain.close)
            release.callback(driver.drain)
            self._release = release.pop_all()

    def encode(self, frames: UInt8Array) -> FrameEmbeds:
        num_frames = len(frames)
        host = self._pixels.host
        np.copyto(host.array[: frames.nbytes].reshape(frames.shape), frames)
        self._driver.upload(self._pixels.device, host.address, frames.nbytes)
        vision = self._contexts["vision"]
        vision.bind(
            {"frames": self._pixels.device, "frame_embeds": self._frame_embeds}, {"F": num_frames}
        )
        vision.enqueue()
        self._driver.synchronize()
        return DeviceFrames(self._frame_embeds, num_frames, self._frame_bytes)

    def step(
        self,
        layout: StepLayout,
        token_ids: Sequence[int],
        frame_embeds: FrameEmbeds | None,
        *,
        position: int,
        past: Rows,
    ) -> None:
        limits = self._limits
        added = require_room(layout, past, limits.capacity, limits.max_step_tokens)
        assert frame_embeds is None or isinstance(frame_embeds, DeviceFrames), "from encode"
        self._inputs.write(layout, token_ids, position=position, past=past)
        self._inputs.assemble(layout, frame_embeds, self._hidden[0])
        bucket = self._cache.bucket(past)
        self._chain.run(StepLetters(layout.text_index.size, layout.num_frames, bucket))
        self._cache.append(past, added)
        self._num_frames = layout.num_frames

    def logits(self, rows: Sequence[int]) -> Float32Array:
        final = self._hidden[self._config.text_config.num_hidden_layers % 2]
        for place, row in enumerate(rows):
            self._driver.copy(
                self._head_rows + place * self._row_bytes,
                final + row * self._row_bytes,
                self._row_bytes,
            )
        head = self._contexts["head"]
        head.bind(
            {"hidden": self._head_rows, "logits": self._logits_exchange.device}, {"T": len(rows)}
        )
        head.enqueue()
        # The caller's array is no pinned memory: that one is gone when the runner is closed.
        logits = self._logits[: len(rows)]
        host = self._logits_exchange.host
        self._driver.download(host.address, self._logits_exchange.device, logits.nbytes)
        self._driver.synchronize()
        self._chain.release_retired()
        np.copyto(logits, host.array[: logits.nbytes].view(np.float32).reshape(logits.shape))
        return logits

    def evict(self, eviction: Eviction) -> None:
        self._cache.evict(eviction, self._contexts["rebase"])

    @property
    def kept(self) -> Mapping[int, Int64Array]:
        shape = (self._num_frames, self._config.num_kept)
        host = self._kept.host
        self._driver.download(host.address, self._kept.device, host.array.nbytes)
        self._driver.synchronize()
        return {
            layer: np.ndarray(shape, np.int64, host.array, place).copy()
            for layer, place in self._kept_places.items()
        }

    @property
    def warnings(self) -> list[str]:
        return [*self._graphs.warnings, *self._chain.warnings]

    def close(self) -> None:
        self._release.close()

    def _take_buffers(self) -> None:
        text, limits = self._config.text_config, self._limits
        most_frames, side = limits.frames_per_step, self._config.vision_config.image_size
        self._hidden = [
            self._driver.malloc(limits.max_step_tokens * self._row_bytes, "hidden states")
            for _ in range(2)  # layers read one and write the other in turn
        ]
        self._pixels = self._exchange(most_frames * side * side * 3, "frames")
        self._frame_embeds = self._driver.malloc(most_frames * self._frame_bytes, "frames")
        self._head_rows = self._driver.malloc(most_frames * self._row_bytes, "hidden states")
        self._logits = np.empty((most_frames, text.vocab_size), np.float32)
        self._logits_exchange = self._exchange(self._logits.nbytes, "logits")
        kept_bytes = aligned(most_frames * self._config.num_kept * ITEM_BYTES["int64"])
        self._kept_places = {
            layer: order * kept_bytes for order, layer in enumerate(self._config.mod_layers)
        }
        self._kept = self._exchange(len(self._kept_places) * kept_bytes, "selections")

    def _exchange(self, size_bytes: int, purpose: str) -> Exchange:
        return Exchange(self._driver.malloc(size_bytes, purpose), self._driver.pinned(size_bytes))

    def _bind(self, contexts: Sequence[GraphContext], letters: StepLetters) -> None:
        """Bind every layer to what a step of these letters reads and writes."""
        num_text, num_frames, past = letters
        sizes = {
            "X": num_text,
            "F": num_frames,
            "T": num_text + num_frames * self._config.frame_num_tokens,
            "R": num_text + num_frames * self._config.num_kept,
        }
        for index, context in enumerate(contexts):
            place = self._kept_places.get(index)
            addresses = {
                "hidden": self._hidden[index % 2],
                "new_hidden": self._hidden[(index + 1) % 2],
                **self._inputs.addresses(letters, is_mod=place is not None),
                **self._cache.addresses(index),
            }
            if place is not None:
                addresses["kept"] = self._kept.device + place
            if past is not None:
                sizes["S"] = past.dense if place is None else past.mod
            context.bind(addresses, sizes)
