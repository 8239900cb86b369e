"""All that a step takes from the host, written into one pinned block and copied up at once.

Cache lengths, cos and sin of the positions, embeddings of the text and, where the layout is another
than the step's before, the routing's row numbers. How long each is follows from the step's shape,
so equal steps find each at the same address, as a captured graph needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mod_edge.bundle.manifest import EMBEDDING_FILE
from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver, PinnedBlock, aligned
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME, StepLayout
from mod_edge.plan.rope import inverse_frequencies
from mod_edge.plan.targets import ITEM_BYTES
from mod_edge.runtime.embedding import read_embedding
from mod_edge.runtime.loaded_model import FrameEmbeds

INT64_BYTES, FLOAT32_BYTES = ITEM_BYTES["int64"], ITEM_BYTES["float32"]


@dataclass(frozen=True)
class DeviceFrames:
    """Frame embeddings (F, N, D) in device memory, as `FrameEmbeds` wants them."""

    address: int
    num_frames: int
    frame_bytes: int

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, frames: slice, /) -> FrameEmbeds:
        first, last, step = frames.indices(self.num_frames)
        assert step == 1, "frames follow each other"
        return DeviceFrames(
            self.address + first * self.frame_bytes, max(0, last - first), self.frame_bytes
        )


class StepShape(NamedTuple):
    """What a step's shape comes to: X, F, and in `delta` the rows of the past that it binds."""

    num_text: int
    num_frames: int
    past: Rows | None


class Places(NamedTuple):
    """Where each part of a step's block begins, in bytes, and where it ends."""

    dense_length: int
    mod_length: int
    cos: int
    sin: int
    text: int
    text_index: int
    frame_index: int
    row_order: int
    end: int


class UploadBlocks:
    """Two pinned blocks by turns and the device block that they are copied to.

    The host writes the one while the device may still read the other, so it waits only where two
    uploads in a row are still on their way.
    """

    def __init__(self, driver: CudaDriver, size_bytes: int, purpose: str) -> None:
        self.address = driver.malloc(size_bytes, purpose)
        self._driver = driver
        self._blocks = [(driver.pinned(size_bytes), driver.make_event()) for _ in range(2)]

    def next_block(self) -> PinnedBlock:
        """The block to write, once the device has read what was in it."""
        self._blocks.reverse()
        block, event = self._blocks[0]
        self._driver.wait(event)
        return block

    def upload(self, size_bytes: int) -> None:
        """Copy the first bytes of the block that `next_block` gave."""
        block, event = self._blocks[0]
        self._driver.upload(self.address, block.address, size_bytes)
        self._driver.record(event)


class StepInputs:
    """The blocks of all steps; `write` fills them and sends them on their way."""

    def __init__(
        self,
        driver: CudaDriver,
        folder: Path,
        config: ModelConfig,
        dtype: str,
        *,
        max_step_tokens: int,
    ) -> None:
        """Map the embedding table of the bundle at `folder` and take the memory for its rows.

        Raises:
            BackendError: the embedding table is not the config's.
        """
        text = config.text_config
        self._driver = driver
        self._config = config
        self._embedding = read_embedding(folder / EMBEDDING_FILE, config, dtype)
        self._row_bytes = text.hidden_size * ITEM_BYTES[dtype]
        self._frequencies = inverse_frequencies(text)
        self._angles = np.empty((max_step_tokens, text.head_dim // 2))
        self._half = text.head_dim // 2
        # No step has more text, more frame tokens or more routed rows than tokens.
        most = self._places(max_step_tokens, max_step_tokens, max_step_tokens, max_step_tokens)
        self._uploads = UploadBlocks(driver, most.end, "the inputs of a step")
        self._layout: StepLayout | None = None

    def addresses(self, shape: StepShape, *, is_mod: bool) -> dict[str, int]:
        """Where a layer finds each input of a step of that shape, by the input's name."""
        places, base = self._places_of(shape.num_text, shape.num_frames), self._uploads.address
        length = base + (places.mod_length if is_mod else places.dense_length)
        common = {"cos": base + places.cos, "sin": base + places.sin}
        # One of the two is the dialect's, the other one no layer has.
        common |= {"past_length": length, "write_index": length}
        if not is_mod:
            return common
        names = ("text_index", "frame_index", "row_order")
        return common | {name: base + getattr(places, name) for name in names}

    def write(
        self, layout: StepLayout, token_ids: Sequence[int], *, position: int, past: Rows
    ) -> None:
        """Copy everything of this step to the device, without waiting for it."""
        places = self._places_of(layout.text_index.size, layout.num_frames)
        block = self._uploads.next_block().array
        block[places.dense_length :][:INT64_BYTES].view(np.int64)[0] = past.dense
        block[places.mod_length :][:INT64_BYTES].view(np.int64)[0] = past.mod
        self._write_angles(block, places, layout.num_tokens, position)
        rows = _part(block, places.text, (len(token_ids), self._row_bytes), np.uint8)
        np.copyto(rows.view(self._embedding.dtype), self._embedding[list(token_ids)])
        if layout is self._layout:
            self._uploads.upload(places.text_index)
            return
        for name in ("text_index", "frame_index", "row_order"):
            indices = getattr(layout, name)
            np.copyto(_part(block, getattr(places, name), indices.shape, np.int64), indices)
        self._uploads.upload(places.end)
        self._layout = layout

    def assemble(self, layout: StepLayout, frames: DeviceFrames | None, hidden: int) -> None:
        """Put text and frames in stream order into `hidden` (T, D), on the device."""
        places = self._places_of(layout.text_index.size, layout.num_frames)
        text = self._uploads.address + places.text
        frame = frames.address if frames else 0
        for piece in layout.pieces:
            if piece == FRAME:
                size_bytes = self._config.frame_num_tokens * self._row_bytes
                self._driver.copy(hidden, frame, size_bytes)
                frame += size_bytes
            else:
                size_bytes = piece * self._row_bytes
                self._driver.copy(hidden, text, size_bytes)
                text += size_bytes
            hidden += size_bytes

    def _write_angles(
        self, block: npt.NDArray[np.uint8], places: Places, num_tokens: int, position: int
    ) -> None:
        """Cos and sin of the step's absolute positions, by way of float64."""
        positions = np.arange(position, position + num_tokens, dtype=np.float64)
        angles = self._angles[:num_tokens]
        np.multiply(positions[:, None], self._frequencies, out=angles)
        for function, place in ((np.cos, places.cos), (np.sin, places.sin)):
            out = _part(block, place, angles.shape, np.float32)
            function(angles, out=out, casting="same_kind")

    def _places_of(self, num_text: int, num_frames: int) -> Places:
        in_frames = num_frames * self._config.frame_num_tokens
        kept = num_frames * self._config.num_kept
        return self._places(num_text + in_frames, num_text, in_frames, num_text + kept)

    def _places(self, num_tokens: int, num_text: int, in_frames: int, num_rows: int) -> Places:
        return _places(
            (
                INT64_BYTES,
                INT64_BYTES,
                num_tokens * self._half * FLOAT32_BYTES,
                num_tokens * self._half * FLOAT32_BYTES,
                num_text * self._row_bytes,
                num_text * INT64_BYTES,
                in_frames * INT64_BYTES,
                num_rows * INT64_BYTES,
            )
        )


@lru_cache(maxsize=512)
def _places(sizes_bytes: tuple[int, ...]) -> Places:
    """One part behind the other, each where a tensor may begin."""
    places, end = [], 0
    for size_bytes in sizes_bytes:
        places.append(end)
        end += aligned(size_bytes)
    return Places._make([*places, end])


def _part(
    block: npt.NDArray[np.uint8], place: int, shape: tuple[int, ...], dtype: type[np.generic]
) -> npt.NDArray[Any]:
    """A view of the block as an array of its own."""
    return np.ndarray(shape, dtype, block, place)
