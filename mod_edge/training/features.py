"""The frozen vision tower's outputs for a data set's frames, computed once and cached on disk.

    <key>/frames.f16        (frames of all clips, N, Dv) float16, without a header
    <key>/num_frames.txt    frames per clip, one number per line, in the split's order

The folder of a key is in `.features/` of the data set, or in a folder that the user names. It is
computed in a temporary one. After Ctrl-C or a full disk that becomes `<key>.partial`, and the next
call continues from there.

The key is a hash of everything that the numbers depend on: the tower's weights and config, the
frame rate, the videos' names, sizes and modification times, and the batch size. Frames are read,
preprocessed and encoded exactly as in the runtime; only the connector, which is trained, is left
out.

Matrix products round differently in batches of another size, so every batch has `FRAMES_AT_ONCE`
frames: each clip starts a new batch, and black frames fill up its last. So a frame has the same
place in the same batch, no matter where the computation was stopped and resumed. Clips are decoded
ahead in threads, because one core decodes fewer frames than a GPU encodes.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt
import torch

from mod_edge.bundle.disk_full import DISK_FULL
from mod_edge.bundle.staging import FolderKind, staged_folder
from mod_edge.config import ModelConfig
from mod_edge.data.clips import NUM_FAULTS_SHOWN, Clip
from mod_edge.errors import DataError, SourceError, joined_faults
from mod_edge.model.video_llm import VideoLLM
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.progress import OnStep
from mod_edge.runtime.capture.opencv import open_file
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.preprocess import fit_frame

FEATURES_FOLDER = ".features"
FRAMES_FILE, COUNTS_FILE = "frames.f16", "num_frames.txt"
PARTIAL_SUFFIX = ".partial"
FEATURES = FolderKind(  # never replaced: computing them again gives the same
    COUNTS_FILE,
    lambda _folder: False,
    re.compile(f"{re.escape(FRAMES_FILE)}|{re.escape(COUNTS_FILE)}"),
)
# Small, because a clip's last batch is filled up: 61 frames (half a minute) take 64. On two cores
# the shipped tower takes 1.1 to 1.6 ms per frame in batches of 16, and 1.7 to 3.5 ms in batches of
# 64.
FRAMES_AT_ONCE = 16
HALF_BYTES = 2
MOST_FRAMES_AHEAD = 64  # of a clip that is decoded ahead: 28 MB at 384 pixels

# (FRAMES_AT_ONCE, I, I, 3) uint8, and how many of them are the clip's
PixelBatch = tuple[npt.NDArray[np.uint8], int]


@dataclass(frozen=True)
class FrameFeatures:
    """The frames of a split's clips, in order.

    Attributes:
        tokens: (frames, N, Dv) float16, the connector's input; a read-only memory map.
        num_frames: (clips,) int64.
    """

    tokens: npt.NDArray[np.float16]
    num_frames: npt.NDArray[np.int64]

    @property
    def frame_num_tokens(self) -> int:
        """N."""
        return self.tokens.shape[1]

    @cached_property
    def first_frames(self) -> npt.NDArray[np.int64]:
        """(clips,) the index of each clip's first frame."""
        return np.cumsum(self.num_frames) - self.num_frames


def frame_features(
    folder: Path,
    clips: Sequence[Clip],
    model: VideoLLM,
    device: torch.device,
    on_step: OnStep,
    *,
    store: Path,
) -> FrameFeatures:
    """The features of the clips' frames, from the cache in `store` or computed into it.

    Args:
        folder: the data set.
        clips: one split.
        model: its vision tower, in float32 on `device`, and its config are used.
        device: encodes the frames.
        on_step: progress callback.
        store: the folder of the cache.

    Raises:
        SourceError: videos cannot be read; names several at once, before any frame is encoded.
        DataError: an output exceeds the range of float16, or `store` cannot be written.
        KeyboardInterrupt: Ctrl-C; finished clips are kept for the next call.
    """
    target = store / _key(folder, clips, model)
    if not target.is_dir():
        _check_writable(store)
        _check_videos(clips, on_step)
        try:
            with (
                staged_folder(target, kind=FEATURES, force=False) as staging,
                _kept_if_stopped(staging, target.with_name(target.name + PARTIAL_SUFFIX)),
            ):
                _compute(staging, clips, model, device, on_step)
        except OSError:
            if not target.is_dir():  # else another training run has computed the same features
                raise
    num_frames = np.array(_counts(target))
    config = model.config
    shape = (num_frames.sum(), config.frame_num_tokens, config.vision_config.hidden_size)
    return FrameFeatures(
        np.memmap(target / FRAMES_FILE, np.float16, mode="r", shape=shape), num_frames
    )


def _check_writable(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=store).close()
    except OSError as exc:
        raise _cannot_write(store, exc) from exc


def _cannot_write(store: Path, exc: OSError) -> DataError:
    space = "free some space, or " if exc.errno in DISK_FULL else ""
    return DataError(
        f"the vision features cannot be written to {store}: {exc.strerror}; {space}keep them in "
        "another folder with --features DIR"
    )


def _check_videos(clips: Sequence[Clip], on_step: OnStep) -> None:
    faults = []
    for number, clip in enumerate(clips):
        on_step("checking videos", number, len(clips))
        try:
            open_file(clip.video).release()
        except SourceError as exc:
            faults.append(str(exc))
    if faults:
        raise SourceError(joined_faults(faults, NUM_FAULTS_SHOWN))


@contextmanager
def _kept_if_stopped(staging: Path, partial: Path) -> Iterator[None]:
    """Start from the contents of `partial`, and move `staging` there when stopped.

    A rename is atomic: of two training runs that start at once, only one gets the contents.
    """
    with suppress(OSError):  # does not exist
        partial.rename(staging)
    try:
        yield
    except (KeyboardInterrupt, OSError) as exc:
        with suppress(OSError):  # another training run has left one
            staging.rename(partial)
        if isinstance(exc, OSError) and exc.errno in DISK_FULL:
            raise _cannot_write(partial.parent, exc) from exc
        raise


@torch.inference_mode()
def _compute(
    target: Path,
    clips: Sequence[Clip],
    model: VideoLLM,
    device: torch.device,
    on_step: OnStep,
) -> None:
    """Append to both files in `target`.

    A clip's line is written after its frames: when stopped in between, the clip is not counted.
    """
    config = model.config
    frame_bytes = config.frame_num_tokens * config.vision_config.hidden_size * HALF_BYTES
    done = _counts(target)
    left = clips[len(done) :]
    with (
        (target / FRAMES_FILE).open("ab") as file,
        (target / COUNTS_FILE).open("ab") as counts,
        _read_ahead(left, config) as all_batches,
    ):
        file.truncate(sum(done) * frame_bytes)  # drops an incomplete clip
        counts.truncate(len(_lines(done)))
        for number, batches in enumerate(all_batches, start=len(done)):
            on_step("vision features", number, len(clips))
            num_frames = 0
            for pixels, size in batches:
                tokens = model.frame_tokens(torch.from_numpy(pixels).to(device))[:size]
                halved = tokens.to(torch.float16).cpu()
                if not halved.isfinite().all():
                    raise DataError(
                        f"the vision tower's outputs reach {tokens.abs().max():.3g}, above the "
                        "maximum of float16; its weights are damaged or untrained: use another init"
                    )
                file.write(halved.contiguous().numpy().data)
                num_frames += size
            file.flush()
            counts.write(_lines([num_frames]))
            counts.flush()


@contextmanager
def _read_ahead(
    clips: Sequence[Clip], config: ModelConfig
) -> Iterator[Iterator[Iterable[PixelBatch]]]:
    """The batches of each clip, in order; short clips are decoded ahead, one per core."""
    fps, num_ahead = config.stream_config.frame_fps, usable_cores()
    pool = ThreadPoolExecutor(num_ahead)

    def begun(clip: Clip) -> Callable[[], Iterable[PixelBatch]]:
        if clip.most_frames(fps) > MOST_FRAMES_AHEAD:  # would take too much memory
            return lambda: _pixel_batches(clip, config)
        return pool.submit(lambda: list(_pixel_batches(clip, config))).result

    def in_order() -> Iterator[Iterable[PixelBatch]]:
        ahead = deque(begun(clip) for clip in clips[:num_ahead])
        for clip in clips[num_ahead:]:
            yield ahead.popleft()()
            ahead.append(begun(clip))
        for finished in ahead:
            yield finished()

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


def _pixel_batches(clip: Clip, config: ModelConfig) -> Iterator[PixelBatch]:
    """The clip's frames, preprocessed: batches of `FRAMES_AT_ONCE`, the last filled with black."""
    side, fps = config.vision_config.image_size, config.stream_config.frame_fps
    shape = (FRAMES_AT_ONCE, side, side, 3)
    pixels, size = np.zeros(shape, np.uint8), 0
    with VideoFile(clip.video, fps=fps, max_frames=clip.most_frames(fps)) as video:
        for frame in video:
            fit_frame(frame.image, pixels[size], config.vision_config)
            size += 1
            if size == FRAMES_AT_ONCE:
                yield pixels, size
                pixels, size = np.zeros(shape, np.uint8), 0
    if size:
        yield pixels, size


def _counts(folder: Path) -> list[int]:
    """Frames of each finished clip; ignores an incomplete last line (full disk)."""
    path = folder / COUNTS_FILE
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    return [int(line) for line in lines if line.endswith("\n")]


def _lines(counts: Sequence[int]) -> bytes:
    return "".join(f"{count}\n" for count in counts).encode()


def _key(folder: Path, clips: Sequence[Clip], model: VideoLLM) -> str:
    config = model.config
    digest = hashlib.sha256()
    for name, parameter in model.vision_model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    stats = [(clip.video.relative_to(folder).as_posix(), clip.video.stat()) for clip in clips]
    facts = {
        "files": [FRAMES_FILE, COUNTS_FILE],
        "vision": asdict(config.vision_config),
        "cls": config.frame_token_cls,
        "pooled": config.frame_token_pooled,
        "fps": config.stream_config.frame_fps,
        "videos": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "seconds": [clip.duration_s for clip in clips],
        "frames_at_once": FRAMES_AT_ONCE,
    }
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:24]
