"""Writes a data set of synthetic scenes: mp4 files and JSONL, in the format of `data.clips`."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import cv2

from mod_edge.bundle.staging import FolderKind, staged_folder
from mod_edge.data.clips import MAX_DURATION_S, Clip, Line, write_clips
from mod_edge.dataclass_reader import JSON, MAX_INT, dataclass_from_dict
from mod_edge.document_parser import parse_json
from mod_edge.errors import DataError, SourceError
from mod_edge.native.captured_stderr import captured_stderr
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.native.native_path import native_path
from mod_edge.native.worker_death import death_of
from mod_edge.progress import OnStep, not_shown
from mod_edge.runtime.capture.opencv import open_file
from mod_edge.toy_scenes.questions import with_questions
from mod_edge.toy_scenes.render import Renderer, photographs_of
from mod_edge.toy_scenes.scene import Scene
from mod_edge.toy_scenes.scene_generator import ACTS, TRAINING_ACTS, write_scene

MARKER_FILE = "scenes.json"
GENERATOR = 2  # its version
VIDEO_SIZE = 128  # pixels
VIDEO_FPS = 4.0
DURATION_S = 30.0
PROBE_BYTES = 2**20  # more than a clip of some minutes, 50 kB for half a minute


@dataclass(frozen=True)
class Split:
    """A part of the data set.

    Attributes:
        name: of its file.
        first_seed: its first scene seed.
        held_out: whether each clip shows a held-out combination.
        for_training: whether rare events are more frequent and many questions are added, see
            `TRAINING_ACTS` and `questions`.
    """

    name: str
    first_seed: int
    held_out: bool = False
    for_training: bool = False

    def scene(self, seed: int, duration_s: float) -> Scene:
        """A scene of this split."""
        acts = TRAINING_ACTS if self.for_training else ACTS
        return write_scene(seed, duration_s, held_out=self.held_out, acts=acts)


@dataclass(frozen=True)
class SceneFacts:
    """The marker file: from it and a clip's uid, the clip's scene is generated again.

    Attributes:
        seed: of the data set.
        duration_s: length of each clip, in seconds.
        clips: number of clips, by the name of their split.
        generator: the version of the generator; another one makes other scenes of the same seeds.
    """

    seed: int
    duration_s: float
    clips: dict[str, Any]
    generator: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_INT:
            raise DataError(f"seed={self.seed}, wanted 0 to {MAX_INT}")
        if not 0 < self.duration_s <= MAX_DURATION_S:
            raise DataError(
                f"duration_s={self.duration_s}, wanted more than 0 and at most "
                f"{MAX_DURATION_S:.0f} seconds, a day"
            )


# Scene seeds of two splits, or of data sets with another --seed, never overlap.
SEEDS_A_SPLIT = 1_000_000
SPLITS = (
    Split("train", 0 * SEEDS_A_SPLIT, for_training=True),
    Split("validation", 1 * SEEDS_A_SPLIT),
    Split("test", 2 * SEEDS_A_SPLIT),
    Split("combinations", 3 * SEEDS_A_SPLIT, held_out=True),
)


def write_scenes(
    folder: Path,
    counts: Mapping[str, int],
    *,
    seed: int,
    force: bool,
    photographs: Path | None = None,
    duration_s: float = DURATION_S,
    on_step: OnStep = not_shown,
) -> None:
    """Write the data set folder atomically.

    Args:
        folder: to write.
        counts: clips of each split, by the name of one of `SPLITS`.
        seed: equal seeds give equal videos and texts.
        force: replace an existing data set.
        photographs: a video to cut backgrounds from.
        duration_s: length of each clip.
        on_step: progress callback.

    Raises:
        ConfigError: `folder` exists and `force` is not set, it is not such a data set, or its path
            is not UTF-8.
        DataError: `counts` has no clips, a value is out of range, OpenCV cannot write videos, or a
            process died.
        OSError: the disk is full.
    """
    total, done = sum(counts.values()), 0
    if not total:
        raise DataError("the data set would have no clips; set the number of at least one split")
    native_path(folder)  # here its name is the user's, not that of the folder being written
    facts = SceneFacts(seed, duration_s, dict(counts), GENERATOR)
    with (
        staged_folder(folder, kind=SCENE_DATA_SET, force=force) as staging,
        # Not forked: OpenCV's threads do not survive a fork.
        ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool,
    ):
        (staging / "videos").mkdir()
        text = json.dumps(asdict(facts)) + "\n"
        (staging / MARKER_FILE).write_text(text, encoding="utf-8")
        for split in SPLITS:
            pending: list[Future[Clip]] = []
            workers: list[BaseProcess] = []
            try:
                pending += [
                    pool.submit(_write_clip, staging, split, number, seed, photographs, duration_s)
                    for number in range(counts.get(split.name, 0))
                ]
                workers += active_children()
                for clip in as_completed(pending):
                    clip.result()
                    done += 1
                    on_step(split.name, done, total)
            except BrokenProcessPool as exc:
                pool.shutdown()  # waits, so that every worker has its exit code
                raise DataError(f"a process that draws clips died: {death_of(workers)}") from exc
            except BaseException:  # also Ctrl-C: else all queued clips would be drawn first
                pool.shutdown(cancel_futures=True)
                raise
            if pending:
                write_clips(staging, split.name, (each.result() for each in pending))


def is_scene_data_set(folder: Path) -> bool:
    """Whether `write_scenes` wrote the data set `folder`; other data sets have no such file."""
    return (folder / MARKER_FILE).is_file()


_SPLIT = "|".join(split.name for split in SPLITS)
SCENE_DATA_SET = FolderKind(
    MARKER_FILE,
    is_scene_data_set,
    # with the features that training caches there
    re.compile(rf"scenes\.json|({_SPLIT})\.jsonl|videos/({_SPLIT})-\d+\.mp4|\.features/.*"),
)


def scenes_of_clips(folder: Path, clips: Iterable[Clip]) -> Iterator[Scene]:
    """The scenes of clips of the data set `folder`, generated again from their seeds.

    Raises:
        DataError: `write_scenes` did not write the data set or one of the clips, or its marker file
            is damaged.
    """
    if not is_scene_data_set(folder):
        raise DataError(
            f"{folder} has no {MARKER_FILE}, so it was not written by mod-edge scenes and its "
            'objects are unknown; train without auxiliary_loss = "motion"'
        )
    facts = _read_facts(folder / MARKER_FILE)
    if facts.generator != GENERATOR:
        raise DataError(
            f"{folder} was written by version {facts.generator} of the scene generator, this is "
            f"version {GENERATOR}: its objects are unknown; write the data set again"
        )
    splits = {split.name: split for split in SPLITS}
    for clip in clips:
        name, _, number = clip.uid.rpartition("-")
        if name not in splits or not number.isdecimal():
            raise DataError(
                f"clip {clip.uid!r} was not written by mod-edge scenes, so its objects are "
                "unknown; remove its line from the data set, or train without "
                'auxiliary_loss = "motion"'
            )
        seed = _scene_seed(facts.seed, splits[name], int(number))
        yield splits[name].scene(seed, facts.duration_s)


def _read_facts(path: Path) -> SceneFacts:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read: {exc}; write the data set again") from exc
    if not isinstance(data, dict):
        raise DataError(f"{path} is not a JSON object; write the data set again")
    return dataclass_from_dict(SceneFacts, data, str(path), syntax=JSON, error=DataError)


def conversation_of(scene: Scene) -> tuple[Line, ...]:
    """The scene's captions, queries and answers."""
    return tuple(_lines(scene))


def _lines(scene: Scene) -> Iterator[Line]:
    for each in scene.happenings:
        if each.query is not None:
            yield Line("user", each.query, each.time_s)
        yield Line("assistant", each.text, each.time_s, each.kind, each.keys)


def _write_clip(
    folder: Path, split: Split, number: int, seed: int, photographs: Path | None, duration_s: float
) -> Clip:
    cv2.setNumThreads(1)  # one process per core
    scene = split.scene(_scene_seed(seed, split, number), duration_s)
    pictures = photographs_of(photographs) if photographs else ()
    video = folder / "videos" / f"{split.name}-{number:06d}.mp4"
    write_video(video, Renderer(scene, VIDEO_SIZE, pictures), scene.duration_s)
    told = with_questions(scene) if split.for_training else scene
    return Clip(video.stem, video, scene.duration_s, conversation_of(told))


def _scene_seed(seed: int, split: Split, number: int) -> int:
    return seed * 10 * SEEDS_A_SPLIT + split.first_seed + number


def write_video(path: Path, renderer: Renderer, duration_s: float) -> None:
    """Render a scene to an mp4 file.

    Raises:
        DataError: this OpenCV has no MPEG-4 encoder, or could not write all frames.
        ConfigError: the path is not UTF-8.
        OSError: the disk is full.
    """
    num_frames = round(duration_s * VIDEO_FPS)
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(native_path(path), fourcc, VIDEO_FPS, (VIDEO_SIZE, VIDEO_SIZE))
    if not writer.isOpened():
        _check_room(path.parent)
        raise DataError(
            f"{path} cannot be written: this OpenCV has no MPEG-4 encoder; install opencv-python"
        )
    with captured_stderr():  # OpenCV prints a failed write, and raises nothing
        for number in range(num_frames):
            writer.write(renderer.frame(number / VIDEO_FPS))
        writer.release()
    num_written = _num_frames(path)
    if num_written < num_frames:
        _check_room(path.parent)
        raise DataError(
            f"{path} has {num_written} of {num_frames} frames: it could not be written whole; "
            "check the disk and its free space"
        )


def _num_frames(path: Path) -> int:
    try:
        capture = open_file(path)
    except SourceError:
        return 0
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


def _check_room(folder: Path) -> None:
    """Raise the OSError that a native library has hidden, if the disk of `folder` is full."""
    with TemporaryFile(dir=folder) as file:
        file.write(os.urandom(PROBE_BYTES))  # zeros would not fill a disk that compresses
        file.flush()
        os.fsync(file.fileno())
