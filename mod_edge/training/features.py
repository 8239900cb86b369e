"""What the frozen vision tower makes of a data set's frames, computed once and kept on disk.

    DIR/.features/<key>/frames.f16        (frames of all clips, N, Dv) float16, without a header
    DIR/.features/<key>/num_frames.json   frames of each clip, in the order of the split's lines

The key is a hash of all that the numbers depend on: the tower's weights and config, the frame rate,
and the videos' names, sizes and times of change. Frames are read, prepared and encoded exactly as
the runtime does it; only the connector, which is trained, is left out.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mod_edge.errors import DataError
from mod_edge.model import VideoLLM
from mod_edge.runtime.capture import VideoFile
from mod_edge.runtime.preprocess import letterbox
from mod_edge.staging import staged_folder
from mod_edge.training.clips import Clip

FOLDER = ".features"
FRAMES_FILE, COUNTS_FILE = "frames.f16", "num_frames.json"
FRAMES_AT_ONCE = 64


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
    on_step: Callable[[str, float, float], None],
) -> FrameFeatures:
    """The features of the clips' frames, from `folder`'s store or computed into it.

    Args:
        folder: of the data set.
        clips: of one split.
        model: its vision tower, in float32 on `device`, and its config count.
        device: where the frames are encoded.
        on_step: told which part, how much is done and of how much.

    Raises:
        SourceError: a video cannot be read.
        DataError: numbers that float16 cannot hold.
    """
    target = folder / FOLDER / _key(folder, clips, model)
    if not target.is_dir():
        try:
            with staged_folder(target, is_ours=lambda _folder: False, force=False) as staging:
                _compute(staging, clips, model, device, on_step)
        except OSError:
            if not target.is_dir():  # else another training run has made the same meanwhile
                raise
    num_frames = np.array(json.loads((target / COUNTS_FILE).read_text(encoding="utf-8")))
    config = model.config
    shape = (num_frames.sum(), config.frame_num_tokens, config.vision_config.hidden_size)
    return FrameFeatures(
        np.memmap(target / FRAMES_FILE, np.float16, mode="r", shape=shape), num_frames
    )


@torch.inference_mode()
def _compute(
    target: Path,
    clips: Sequence[Clip],
    model: VideoLLM,
    device: torch.device,
    on_step: Callable[[str, float, float], None],
) -> None:
    config = model.config
    side, fps = config.vision_config.image_size, config.stream_config.frame_fps
    pixels = np.zeros((FRAMES_AT_ONCE, side, side, 3), np.uint8)
    num_frames = []
    with (target / FRAMES_FILE).open("wb") as file:

        def encode(size: int) -> None:
            tokens = model.frame_tokens(torch.from_numpy(pixels[:size]).to(device))
            halved = tokens.to(torch.float16)
            if not halved.isfinite().all():
                raise DataError(
                    f"the vision tower's outputs reach {tokens.abs().max():.3g}, more than float16 "
                    "holds; its weights are damaged or not those of a trained tower"
                )
            halved.cpu().numpy().tofile(file)

        for number, clip in enumerate(clips):
            on_step("vision features", number, len(clips))
            with VideoFile(clip.video, fps=fps, max_frames=clip.most_frames(fps)) as video:
                for frame in video:
                    place = frame.index % FRAMES_AT_ONCE
                    letterbox(frame.image, pixels[place])
                    if place == FRAMES_AT_ONCE - 1:
                        encode(FRAMES_AT_ONCE)
                if left := video.num_frames % FRAMES_AT_ONCE:
                    encode(left)
                num_frames.append(video.num_frames)
    (target / COUNTS_FILE).write_text(json.dumps(num_frames), encoding="utf-8")


def _key(folder: Path, clips: Sequence[Clip], model: VideoLLM) -> str:
    config = model.config
    digest = hashlib.sha256()
    for name, parameter in model.vision_model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    stats = [(clip.video.relative_to(folder).as_posix(), clip.video.stat()) for clip in clips]
    facts = {
        "vision": asdict(config.vision_config),
        "cls": config.frame_token_cls,
        "pooled": config.frame_token_pooled,
        "fps": config.stream_config.frame_fps,
        "videos": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "seconds": [clip.duration_s for clip in clips],
    }
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:24]
