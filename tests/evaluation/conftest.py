"""A data set of two short clips, and the tiny model watching it."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from mod_edge.data.clips import Clip, Line, read_clips, write_clips
from mod_edge.data.dialogue import dialogue_of_clip
from mod_edge.evaluation.clip_frames import read_footage
from mod_edge.evaluation.eval_model import Subject
from mod_edge.evaluation.opened_model import open_model

SIDE, VIDEO_FPS, DURATION_S = 48, 4.0, 5.0
COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}


def draw(path, colours):
    """A video in which a square moves on, over one plain colour after the other."""
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
    """Two clips of 10 frames: captions, a standing instruction, and a question in between."""
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
def tiny_model(tiny_checkpoint):
    """The tiny checkpoint, opened."""
    return open_model(tiny_checkpoint, backend="auto", device="auto")


@pytest.fixture
def make_subject(tiny_model, clips):
    """`make_subject(model=tiny_model, **limits)`: ready to watch the clips within these limits."""
    subjects = []

    def make(model=tiny_model, **limits):
        subjects.append(Subject(model, clips))
        subjects[-1].limits = replace(subjects[-1].limits, **limits)
        return subjects[-1]

    yield make
    for subject in subjects:
        subject.__exit__()


@pytest.fixture(scope="session")
def watched(clips, tiny_model):
    """Each clip's dialogue and footage."""
    fps = tiny_model.config.stream_config.frame_fps
    footages = [read_footage(clip, tiny_model.config) for clip in clips]
    return [
        (dialogue_of_clip(clip, fps, len(footage.pixels)), footage)
        for clip, footage in zip(clips, footages, strict=True)
    ]
