"""All inputs of a step from the host, written into one pinned block and uploaded at once.

These are cache lengths, cos and sin of the positions, embeddings of the text and, if the layout has
changed since the last step, row numbers for routing. Sizes follow from the step's shape, so steps
of one shape find each input at the same address, as captured graphs require.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mod_edge.config import ModelConfig
from mod_edge.native.cuda_driver import CudaDriver, PinnedBlock, aligned
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.layout import FRAME, StepLayout
from mod_edge.plan.rope import StepAngles
from mod_edge.plan.targets import ITEM_BYTES
from mod_edge.runtime.embedding import Embedding
from mod_edge.runtime.loaded_model import FrameEmbeds

INT64_BYTES, FLOAT32_BYTES = ITEM_BYTES["int64"], ITEM_BYTES["float32"]


@dataclass(frozen=True)
class DeviceFrames:
    """Frame embeddings (F, N, D) in device memory; a `FrameEmbeds`."""

    address: int
    num_frames: int
    frame_bytes: int

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, frames: slice, /) -> FrameEmbeds:
        first, last, step = frames.indices(self.num_frames)
        assert step == 1, "frames must be consecutive"
        return DeviceFrames(
            self.address + first * self.frame_bytes, max(0, last - first), self.frame_bytes
        )


class StepShape(NamedTuple):
    """The shape of a step: X, F, and in `delta` the rows of the past that it binds."""

    num_text: int
    num_frames: int
    past: Rows | None


class Places(NamedTuple):
    """Where each part of a step's block begins, and where the block ends, in bytes."""

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
    """Two pinned blocks, used alternately, and the device block that they are copied to.

    The host writes one while the device may still read the other, so it waits only if the last two
    uploads are both still running.
    """

    def __init__(self, driver: CudaDriver, size_bytes: int, purpose: str) -> None:
        self.address = driver.malloc(size_bytes, purpose)
        self._driver = driver
        self._blocks = [(driver.pinned(size_bytes), driver.make_event()) for _ in range(2)]

    def next_block(self) -> PinnedBlock:
        """The block to write next; waits until the device has read it."""
        self._blocks.reverse()
        block, event = self._blocks[0]
        self._driver.wait(event)
        return block

    def upload(self, size_bytes: int) -> None:
        """Copy the first bytes of the block that `next_block` returned."""
        block, event = self._blocks[0]
        self._driver.upload(self.address, block.address, size_bytes)
        self._driver.record(event)


class StepInputs:
    """The input blocks of all steps; `write` fills and uploads them."""

    def __init__(
        self,
        driver: CudaDriver,
        embedding: Embedding,
        config: ModelConfig,
        *,
        max_step_tokens: int,
    ) -> None:
        """Allocate the blocks."""
        text = config.text_config
        self._driver = driver
        self._config = config
        self._embedding = embedding
        self._row_bytes = text.hidden_size * embedding.dtype.itemsize
        self._angles = StepAngles(text, max_step_tokens)
        self._half = text.head_dim // 2
        # Upper bounds: no step has more text, frame tokens or routed rows than tokens.
        most = self._places(max_step_tokens, max_step_tokens, max_step_tokens, max_step_tokens)
        self._uploads = UploadBlocks(driver, most.end, "the inputs of a step")
        self._layout: StepLayout | None = None

    def addresses(self, shape: StepShape, *, is_mod: bool) -> dict[str, int]:
        """Addresses of a layer's inputs in a step of that shape, by tensor name."""
        places, base = self._places_of(shape.num_text, shape.num_frames), self._uploads.address
        length = base + (places.mod_length if is_mod else places.dense_length)
        common = {"cos": base + places.cos, "sin": base + places.sin}
        # A layer has one of the two, depending on the dialect.
        common |= {"past_length": length, "write_index": length}
        if not is_mod:
            return common
        names = ("text_index", "frame_index", "row_order")
        return common | {name: base + getattr(places, name) for name in names}

    def write(
        self, layout: StepLayout, token_ids: Sequence[int], *, position: int, past: Rows
    ) -> None:
        """Upload the inputs of a step, without waiting for it."""
        places = self._places_of(layout.text_index.size, layout.num_frames)
        block = self._uploads.next_block().array
        block[places.dense_length :][:INT64_BYTES].view(np.int64)[0] = past.dense
        block[places.mod_length :][:INT64_BYTES].view(np.int64)[0] = past.mod
        shape = (layout.num_tokens, self._half)
        cos, sin = (_part(block, place, shape, np.float32) for place in (places.cos, places.sin))
        self._angles.write(position, cos, sin)
        rows = _part(block, places.text, (len(token_ids), self._row_bytes), np.uint8)
        np.copyto(rows.view(self._embedding.dtype), self._embedding.rows(token_ids))
        if layout is self._layout:
            self._uploads.upload(places.text_index)
            return
        for name in ("text_index", "frame_index", "row_order"):
            indices = getattr(layout, name)
            np.copyto(_part(block, getattr(places, name), indices.shape, np.int64), indices)
        self._uploads.upload(places.end)
        self._layout = layout

    def assemble(self, layout: StepLayout, frames: DeviceFrames | None, hidden: int) -> None:
        """Copy text and frames in stream order to `hidden` (T, D), on the device."""
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
    """Parts one after another, each aligned for a tensor."""
    places, end = [], 0
    for size_bytes in sizes_bytes:
        places.append(end)
        end += aligned(size_bytes)
    return Places._make([*places, end])


def _part(
    block: npt.NDArray[np.uint8], place: int, shape: tuple[int, ...], dtype: type[np.generic]
) -> npt.NDArray[Any]:
    """A view of a part of the block as an array."""
    return np.ndarray(shape, dtype, block, place)
