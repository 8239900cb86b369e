"""What the frozen vision tower makes of a data set's frames, computed once and kept on disk.

    DIR/.features/<key>/frames.f16        (frames of all clips, N, Dv) float16, without a header
    DIR/.features/<key>/num_frames.txt    frames of each clip, one a line, in the split's order

While they are computed they lie elsewhere; what Ctrl-C or a full disk leaves unfinished lies in
`<key>.partial`, from which the next try goes on.

The key is a hash of all that the numbers depend on: the tower's weights and config, the frame rate,
the videos' names, sizes and times of change, and how many frames a batch has. Frames are read,
prepared and encoded exactly as the runtime does it; only the connector, which is trained, is left
out.

Matrix products round differently in batches of other sizes, so every batch has `FRAMES_AT_ONCE`
frames: a clip's first frame begins one, black frames fill up its last. Wherever the work is stopped
and goes on, a frame is computed in the same place of the same batch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mod_edge.bundle.staging import staged_folder
from mod_edge.data.clips import NUM_FAULTS_SHOWN, Clip
from mod_edge.errors import DataError, SourceError, joined_faults
from mod_edge.model.video_llm import VideoLLM
from mod_edge.progress import OnStep
from mod_edge.runtime.capture.opencv import open_file
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.preprocess import letterbox

FOLDER = ".features"
FRAMES_FILE, COUNTS_FILE = "frames.f16", "num_frames.txt"
PARTIAL_SUFFIX = ".partial"
# Few, because a clip's last batch is filled up: 61 frames, half a minute, take 64. On two cores the
# shipped tower takes 1.1 to 1.6 ms a frame in batches of 16, and 1.7 to 3.5 ms in batches of 64.
FRAMES_AT_ONCE = 16
HALF_BYTES = 2


@dataclass(frozen=True)
class FrameFeatures:
    """The frames of a split's clips, one after the other.

    Attributes:
        tokens: (frames, N, Dv) float16, what the connector takes; a memory map, read-only.
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
        """(clips,) the number of each clip's first frame."""
        return np.cumsum(self.num_frames) - self.num_frames


def frame_features(
    folder: Path,
    clips: Sequence[Clip],
    model: VideoLLM,
    device: torch.device,
    on_step: OnStep,
) -> FrameFeatures:
    """The features of the clips' frames, from `folder`'s store or computed into it.

    Args:
        folder: of the data set.
        clips: of one split.
        model: its vision tower, in float32 on `device`, and its config count.
        device: where the frames are encoded.
        on_step: told which part, how much is done and of how much.

    Raises:
        SourceError: videos cannot be read; some of them are named at once, before hours of others.
        DataError: numbers that float16 cannot hold.
        KeyboardInterrupt: Ctrl-C; what is done is kept for the next call.
    """
    target = folder / FOLDER / _key(folder, clips, model)
    if not target.is_dir():
        _check_videos(clips, on_step)
        try:
            with (
                staged_folder(target, is_ours=lambda _folder: False, force=False) as staging,
                _kept_if_stopped(staging, target.with_name(target.name + PARTIAL_SUFFIX)),
            ):
                _compute(staging, clips, model, device, on_step)
        except OSError:
            if not target.is_dir():  # else another training run has made the same meanwhile
                raise
    num_frames = np.array(_counts(target))
    config = model.config
    shape = (num_frames.sum(), config.frame_num_tokens, config.vision_config.hidden_size)
    return FrameFeatures(
        np.memmap(target / FRAMES_FILE, np.float16, mode="r", shape=shape), num_frames
    )


def _check_videos(clips: Sequence[Clip], on_step: OnStep) -> None:
    faults = []
    for number, clip in enumerate(clips):
        on_step("looking at videos", number, len(clips))
        try:
            open_file(clip.video).release()
        except SourceError as exc:
            faults.append(str(exc))
    if faults:
        raise SourceError(joined_faults(faults, NUM_FAULTS_SHOWN))


@contextmanager
def _kept_if_stopped(staging: Path, partial: Path) -> Iterator[None]:
    """Begin with what lies in `partial`, and leave there what is done when stopped.

    A folder moves whole: of two trainings that begin at once one gets it, the other an empty one.
    """
    with suppress(OSError):  # there is none
        partial.rename(staging)
    try:
        yield
    except (KeyboardInterrupt, OSError):
        with suppress(OSError):  # another training has left one meanwhile
            staging.rename(partial)
        raise


@torch.inference_mode()
def _compute(
    target: Path,
    clips: Sequence[Clip],
    model: VideoLLM,
    device: torch.device,
    on_step: OnStep,
) -> None:
    """Write both files into `target`, behind what they hold already.

    A clip counts when its line is written, after its frames: nothing is left to do when stopped.
    """
    config = model.config
    side, fps = config.vision_config.image_size, config.stream_config.frame_fps
    pixels = np.zeros((FRAMES_AT_ONCE, side, side, 3), np.uint8)
    frame_bytes = config.frame_num_tokens * config.vision_config.hidden_size * HALF_BYTES
    done = _counts(target)
    with (
        (target / FRAMES_FILE).open("ab") as file,
        (target / COUNTS_FILE).open("ab") as counts,
    ):
        file.truncate(sum(done) * frame_bytes)  # the clip that was stopped in begins anew
        counts.truncate(len(_lines(done)))

        def encode(size: int) -> None:
            pixels[size:] = 0
            tokens = model.frame_tokens(torch.from_numpy(pixels).to(device))[:size]
            halved = tokens.to(torch.float16)
            if not halved.isfinite().all():
                raise DataError(
                    f"the vision tower's outputs reach {tokens.abs().max():.3g}, more than float16 "
                    "holds; its weights are damaged or not those of a trained tower"
                )
            file.write(halved.cpu().contiguous().numpy().data)

        for number, clip in enumerate(clips[len(done) :], start=len(done)):
            on_step("vision features", number, len(clips))
            with VideoFile(clip.video, fps=fps, max_frames=clip.most_frames(fps)) as video:
                for frame in video:
                    place = frame.index % FRAMES_AT_ONCE
                    letterbox(frame.image, pixels[place])
                    if place == FRAMES_AT_ONCE - 1:
                        encode(FRAMES_AT_ONCE)
                if left := video.num_frames % FRAMES_AT_ONCE:
                    encode(left)
            file.flush()
            counts.write(_lines([video.num_frames]))
            counts.flush()


def _counts(folder: Path) -> list[int]:
    """Frames of each clip that is done; a line that a full disk cut off is none."""
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
