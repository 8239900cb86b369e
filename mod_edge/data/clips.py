"""A data set of videos with timed conversations: JSONL files and ordinary video files.

    DIR/train.jsonl  validation.jsonl  test.jsonl     one video per line
    DIR/videos/*.mp4                                  or another folder, as in the lines

A line has the format of the published streaming data (VideoLLM-online's `conversation` with `role`,
`content` and `time` in seconds), plus the video's path relative to DIR:

    {"video_uid": "a1", "video": "videos/a1.mp4", "duration": 30.0, "conversation": [
        {"role": "user", "content": "Please narrate the video in real time.", "time": 0.0},
        {"role": "assistant", "content": "A red ball is here.", "time": 0.0},
        {"role": "assistant", "content": "The red ball stops.", "time": 4.5,
         "kind": "stops", "keys": ["red", "ball", "stops"]}]}

`kind` and `keys` are optional: the kind of event that a caption describes, for tables, and the
words that it must contain to count as right; without them all words must match.
"""

import codecs
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_edge.data.stream_metrics import is_same
from mod_edge.document_parser import parse_json
from mod_edge.errors import DataError, joined_faults, shortened
from mod_edge.unicode_text import lone_surrogate

ROLES = ("user", "assistant")
NUM_FAULTS_SHOWN = 8
DURATION_SLACK_S = 1.0
# Far above any video and any reply of the published data, so a larger value is a slip. Evaluation
# plans a window for the longest clip and lets a model write twice the longest reply; training pads
# every batch to its longest text, whose attention takes memory by the square.
MAX_DURATION_S = 24 * 3600.0
MAX_TEXT_CHARS = 8000  # about four pages of a book


@dataclass(frozen=True)
class Line:
    """A line of the conversation at `time_s` seconds; the module describes `kind` and `keys`."""

    role: str
    content: str
    time_s: float
    kind: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """A video and its conversation, in order of time."""

    uid: str
    video: Path
    duration_s: float
    conversation: tuple[Line, ...]

    def most_frames(self, fps: float) -> int:
        """The maximum number of frames: one at 0 s, the last one not after the clip's end."""
        return int(self.duration_s * fps) + 1

    def ends_too_soon(self, num_frames: int, fps: float) -> bool:
        """Whether the video is more than `DURATION_SLACK_S` shorter than its line's duration.

        Args:
            num_frames: number of frames that were read.
            fps: frames/s of reading.
        """
        return num_frames < (self.duration_s - DURATION_SLACK_S) * fps


def split_file(folder: Path, split: str) -> Path:
    """The JSONL file of a split."""
    return folder / f"{split}.jsonl"


def read_clips(folder: Path, split: str, *, needs_videos: bool = True) -> list[Clip]:
    """The clips of a split, in the file's order.

    Args:
        folder: the data set.
        split: the name of its JSONL file.
        needs_videos: whether a missing video is a fault.

    Raises:
        DataError: the split is missing or empty, or has lines with faults or missing videos (names
            several at once).
    """
    path = split_file(folder, split)
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except FileNotFoundError as exc:
        raise DataError(
            f"{folder} has no {path.name}, the file of split {split!r}; its format is in the "
            "docstring of mod_edge/data/clips.py"
        ) from exc
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}; check the path") from exc
    clips, faults = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                clips.append(_clip_from_json(_decoded(line), folder, needs_video=needs_videos))
            except (KeyError, TypeError, ValueError) as exc:
                what = f"has no {exc}" if isinstance(exc, KeyError) else str(exc)
                faults.append(f"line {number}: {what}")
    if faults:
        shown = joined_faults(faults, NUM_FAULTS_SHOWN)
        raise DataError(f"{path}: {shown}; its format is in mod_edge/data/clips.py")
    if not clips:
        raise DataError(f"{path} is empty; it needs one line per video")
    return clips


def write_clips(folder: Path, split: str, clips: Iterable[Clip]) -> None:
    """Write a split's lines; the caller writes the videos, below `folder`."""
    with split_file(folder, split).open("w", encoding="utf-8") as file:
        for clip in clips:
            file.write(json.dumps(_clip_to_json(clip, folder)) + "\n")


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"byte {exc.start + 1} is not UTF-8; save the file as UTF-8") from exc


def _clip_from_json(line: str, folder: Path, *, needs_video: bool) -> Clip:
    data = parse_json(line)
    if not isinstance(data, dict):
        raise ValueError(f"got a {type(data).__name__}, wanted an object")
    duration_s = _seconds(data["duration"], "duration")
    if not isinstance(data["conversation"], list):
        raise ValueError(f"conversation is a {type(data['conversation']).__name__}, wanted a list")
    conversation = tuple(_line_from_json(each, duration_s) for each in data["conversation"])
    times = [each.time_s for each in conversation]
    if times != sorted(times):
        raise ValueError("the conversation is not in order of time")
    uid = str(data["video_uid"])
    _check_text(uid, "video_uid")
    video = _video_path(data["video"], folder, is_needed=needs_video)
    return Clip(uid, video, duration_s, conversation)


def _video_path(name: Any, folder: Path, *, is_needed: bool) -> Path:
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"video={shortened(name)}, wanted a path inside the data set's folder")
    video = folder / name
    try:
        is_missing = is_needed and not video.is_file()
    except OSError as exc:  # a name that is too long, a folder that may not be entered
        raise ValueError(f"video={shortened(name)} cannot be read: {exc.strerror}") from exc
    if is_missing:
        raise ValueError(f"there is no video {video}")
    return video


def _line_from_json(data: Any, duration_s: float) -> Line:
    if not isinstance(data, dict):
        raise ValueError(f"conversation contains a {type(data).__name__}, wanted objects")
    role, content, time_s = data["role"], data["content"], _seconds(data["time"], "time")
    if role not in ROLES:
        raise ValueError(f"role={shortened(role)}, wanted one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"content={shortened(content)}, wanted text")
    _check_text(content, "content")
    if time_s > duration_s:
        raise ValueError(f"time={time_s} is after the video's end, {duration_s} s")
    kind, keys = data.get("kind", ""), data.get("keys", [])
    if not isinstance(kind, str):
        raise ValueError(f"kind={shortened(kind)}, wanted a word")
    _check_text(kind, "kind")
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or not all(any(map(str.isalnum, key)) for key in keys):
        raise ValueError(f"keys={shortened(keys)}, wanted a list of words")
    if not is_same(content, content, keys):
        raise ValueError(
            f"keys={shortened(keys)}, wanted words of {shortened(content)} in their order"
        )
    return Line(role, content, time_s, kind, tuple(keys))


def _clip_to_json(clip: Clip, folder: Path) -> dict[str, Any]:
    lines = []
    for line in clip.conversation:
        entry: dict[str, Any] = {"role": line.role, "content": line.content, "time": line.time_s}
        kind = {"kind": line.kind} if line.kind else {}
        keys = {"keys": list(line.keys)} if line.keys else {}
        lines.append(entry | kind | keys)
    return {
        "video_uid": clip.uid,
        "video": clip.video.relative_to(folder).as_posix(),
        "duration": clip.duration_s,
        "conversation": lines,
    }


def _seconds(value: Any, name: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={shortened(value)}, wanted seconds")
    if value > MAX_DURATION_S:
        raise ValueError(
            f"{name}={shortened(value)}, wanted at most {MAX_DURATION_S:.0f} seconds, a day"
        )
    return float(value)


def _check_text(text: str, name: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(
            f"{name}={shortened(text)} has {len(text)} characters, wanted at most {MAX_TEXT_CHARS}"
        )
    if (fault := lone_surrogate(text)) is not None:
        raise ValueError(f"{name}={shortened(text)}, wanted Unicode text, but {fault}")
