"""A data set of two short clips, and the tiny model to evaluate on it."""

from contextlib import ExitStack
from dataclasses import replace

import cv2
import numpy as np
import pytest

from mod_edge.data.clips import Clip, Line, read_clips, write_clips
from mod_edge.data.dialogue import dialogue_of_clip
from mod_edge.evaluation.clip_frames import read_clip_frames
from mod_edge.evaluation.eval_model import EvalModel, open_model

SIDE, VIDEO_FPS, DURATION_S = 48, 4.0, 5.0
COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}


def draw(path, colours):
    """A video of a moving square over a sequence of plain colours."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), VIDEO_FPS, (SIDE, SIDE))
    num_frames = round(DURATION_S * VIDEO_FPS)
    for number in range(num_frames):
        image = np.full((SIDE, SIDE, 3), COLOURS[colours[number * len(colours) // num_frames]])
        image[10:20, 2 * number : 2 * number + 10] = 255
        writer.write(image.astype(np.uint8))
    writer.release()


def user(text, time_s):
    return Line("user", text, time_s)


def assistant(text, time_s, *keys):
    return Line("assistant", text, time_s, keys[-1] if keys else "", keys)


CONVERSATIONS = {
    ("red", "green"): (
        user("Narrate.", 0.0),
        assistant("Red.", 0.0),
        assistant("A man stops.", 2.1, "man", "stops"),
        assistant("A man turns.", 4.0, "man", "turns"),
    ),
    ("blue", "green", "red"): (
        assistant("A man stops.", 1.0, "man", "stops"),
        user("Which?", 2.4),
        assistant("Green.", 2.4),
        assistant("Two leave.", 3.9),
    ),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Two clips of 10 frames with captions, one standing instruction and one question."""
    folder = tmp_path_factory.mktemp("data")
    clips = []
    for number, (colours, lines) in enumerate(CONVERSATIONS.items()):
        video = folder / f"{number}.mp4"
        draw(video, colours)
        clips.append(Clip(f"clip{number}", video, DURATION_S, lines))
    write_clips(folder, "test", clips)
    return folder


@pytest.fixture(scope="session")
def clips(data):
    return read_clips(data, "test")


@pytest.fixture(scope="session")
def tiny_source(tiny_checkpoint):
    """The tiny checkpoint, opened."""
    return open_model(tiny_checkpoint, backend="auto", device="auto")


@pytest.fixture
def make_eval_model(tiny_source, clips):
    """`make_eval_model(source=tiny_source, **limits)`: a model for the clips with these limits."""
    with ExitStack() as release:

        def make(source=tiny_source, **limits):
            model = release.enter_context(EvalModel(source, clips))
            model.limits = replace(model.limits, **limits)
            return model

        yield make


@pytest.fixture(scope="session")
def clip_frames(clips, tiny_source):
    """Each clip's dialogue and frames."""
    fps = tiny_source.config.stream_config.frame_fps
    read = [read_clip_frames(clip, tiny_source.config) for clip in clips]
    return [
        (dialogue_of_clip(clip, fps, len(frames.pixels)), frames)
        for clip, frames in zip(clips, read, strict=True)
    ]
