"""Writes the data set of made-up scenes: mp4 files and JSONL, as `clips` describes them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2

from mod_edge.bundle.staging import staged_folder
from mod_edge.data.clips import Clip, Line, write_clips
from mod_edge.errors import DataError
from mod_edge.native.onnx_session import usable_cores
from mod_edge.progress import OnStep, not_shown
from mod_edge.toy_scenes.questions import with_questions
from mod_edge.toy_scenes.render import Renderer, photographs_of
from mod_edge.toy_scenes.scene import Scene
from mod_edge.toy_scenes.scene_generator import write_scene

MARKER_FILE = "scenes.json"
VIDEO_SIZE = 128  # pixels
VIDEO_FPS = 4.0
DURATION_S = 30.0


@dataclass(frozen=True)
class Split:
    """A part of the data set.

    Attributes:
        name: of its file.
        first_seed: where its seeds begin.
        held_out: whether each clip shows a held-out combination.
        more_questions: whether many are asked, see `questions`.
    """

    name: str
    first_seed: int
    held_out: bool = False
    more_questions: bool = False


# Seeds of a data set of another --seed begin elsewhere; splits of one never meet.
SEEDS_A_SPLIT = 1_000_000
SPLITS = (
    Split("train", 0 * SEEDS_A_SPLIT, more_questions=True),
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
    """Make the data set folder; it appears whole or not at all.

    Args:
        folder: to make.
        counts: clips of each split, by the name of one of `SPLITS`.
        seed: the same gives the same videos' content.
        force: replace a data set that is there.
        photographs: a video of which backgrounds are cut.
        duration_s: of each clip.
        on_step: told what is written, the clips done and of how many.

    Raises:
        ConfigError: `folder` exists and `force` is not given, or it is something else.
        DataError: no clips are asked for, or a video cannot be written here.
    """
    total, done = sum(counts.values()), 0
    if not total:
        raise DataError("a data set of no clips at all; ask for some of a split")
    with (
        staged_folder(folder, is_ours=is_made_up, force=force) as staging,
        # Not forked: OpenCV's threads do not survive it.
        ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool,
    ):
        (staging / "videos").mkdir()
        facts = {"seed": seed, "duration_s": duration_s, "clips": dict(counts)}
        (staging / MARKER_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for split in SPLITS:
            pending: list[Future[Clip]] = [
                pool.submit(_write_clip, staging, split, number, seed, photographs, duration_s)
                for number in range(counts.get(split.name, 0))
            ]
            try:
                for clip in as_completed(pending):
                    clip.result()
                    done += 1
                    on_step(split.name, done, total)
            except BaseException:  # Ctrl-C too: else all that is queued would be drawn first
                pool.shutdown(cancel_futures=True)
                raise
            if pending:
                write_clips(staging, split.name, (each.result() for each in pending))


def is_made_up(folder: Path) -> bool:
    """Whether `folder` is a data set that `write_scenes` made: a user's own has no such file."""
    return (folder / MARKER_FILE).is_file()


def scenes_of_clips(folder: Path, clips: Iterable[Clip]) -> Iterator[Scene]:
    """The scenes that clips of the data set `folder` were drawn from, made up once more.

    Raises:
        DataError: the data set is none that `write_scenes` made.
    """
    if not is_made_up(folder):
        raise DataError(
            f"{folder} has no {MARKER_FILE}: what videos show is known of data sets that "
            'mod-edge scenes wrote; train others without auxiliary_loss = "motion"'
        )
    facts = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
    splits = {split.name: split for split in SPLITS}
    for clip in clips:
        name, _, number = clip.uid.rpartition("-")
        if name not in splits or not number.isdecimal():
            raise DataError(
                f"what the video of {clip.uid!r} shows is not known, as mod-edge scenes did not "
                "draw it; take its line out of the data set, or train without "
                'auxiliary_loss = "motion"'
            )
        seed = _scene_seed(facts["seed"], splits[name], int(number))
        yield write_scene(seed, facts["duration_s"], held_out=splits[name].held_out)


def conversation_of(scene: Scene) -> tuple[Line, ...]:
    """What is said over the scene, and asked."""
    return tuple(_lines(scene))


def _lines(scene: Scene) -> Iterator[Line]:
    for each in scene.happenings:
        if each.query is not None:
            yield Line("user", each.query, each.time_s)
        yield Line("assistant", each.text, each.time_s, each.kind, each.keys)


def _write_clip(
    folder: Path, split: Split, number: int, seed: int, photographs: Path | None, duration_s: float
) -> Clip:
    cv2.setNumThreads(1)  # one process a core
    scene = write_scene(_scene_seed(seed, split, number), duration_s, held_out=split.held_out)
    pictures = photographs_of(photographs) if photographs else ()
    video = folder / "videos" / f"{split.name}-{number:06d}.mp4"
    write_video(video, Renderer(scene, VIDEO_SIZE, pictures), scene.duration_s)
    told = with_questions(scene) if split.more_questions else scene
    return Clip(video.stem, video, scene.duration_s, conversation_of(told))


def _scene_seed(seed: int, split: Split, number: int) -> int:
    return seed * 10 * SEEDS_A_SPLIT + split.first_seed + number


def write_video(path: Path, renderer: Renderer, duration_s: float) -> None:
    """Draw a scene into an mp4 file.

    Raises:
        DataError: OpenCV has no encoder for it here.
    """
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), fourcc, VIDEO_FPS, (VIDEO_SIZE, VIDEO_SIZE))
    if not writer.isOpened():
        raise DataError(f"{path} cannot be written: this OpenCV has no MPEG-4 encoder")
    for number in range(round(duration_s * VIDEO_FPS)):
        writer.write(renderer.frame(number / VIDEO_FPS))
    writer.release()
