"""A data set that a tiny model learns in seconds: frames of one colour, which sometimes changes."""

import cv2
import numpy as np

from mod_edge.data.clips import Clip, Line, write_clips

COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0)}  # BGR
VIDEO_FPS = 2
INSTRUCTION = "Please narrate the video in real time."


def write_toy_data(folder, *, num_clips, num_frames=14, seed=0):
    """Write the training split; returns its clips."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    clips = []
    for number in range(num_clips):
        video = folder / "videos" / f"{number}.avi"
        shown = np.cumsum(rng.random(num_frames) < 0.3) + rng.integers(2)
        names = [tuple(COLOURS)[each % 2] for each in shown]
        _write_video(video, names)
        lines = [Line("user", INSTRUCTION, 0.0)]
        for frame, name in enumerate(names):
            if frame == 0 or name != names[frame - 1]:
                lines.append(Line("assistant", f"It is {name}.", frame / VIDEO_FPS, "", (name,)))
        clips.append(Clip(str(number), video, num_frames / VIDEO_FPS, tuple(lines)))
    write_clips(folder, "train", clips)
    return clips


def _write_video(path, names):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), VIDEO_FPS, (48, 32))
    for name in names:
        writer.write(np.full((32, 48, 3), COLOURS[name], np.uint8))
    writer.release()
