"""A clip in memory equals the frames that the runtime reads from its file."""

from dataclasses import replace

import numpy as np
import pytest

from mod_edge.data.clips import MAX_DURATION_S, Clip
from mod_edge.evaluation.clip_frames import num_clip_frames, read_clip_frames, seed_of
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.runtime.preprocess import letterbox, stretch


@pytest.fixture
def frames(clip, tiny_source):
    """Six seconds of the webcam's 384 x 288 pixels."""
    return read_clip_frames(Clip("box", clip, 5.9, ()), tiny_source.config)


def test_frames_equal_those_of_the_file(clip, frames, tiny_source):
    side = tiny_source.config.vision_config.image_size
    ours, theirs = (np.empty((side, side, 3), np.uint8) for _ in range(2))
    with VideoFile(clip, fps=tiny_source.config.stream_config.frame_fps) as video:
        for mine, frame in zip(frames, video, strict=False):
            letterbox(mine.image, ours)
            letterbox(frame.image, theirs)
            assert (mine.index, mine.time_s) == (frame.index, frame.time_s)
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(ours, frames.pixels[mine.index])


def test_frames_are_stretched_for_a_model_that_wants_it(clip, tiny_source):
    vision = replace(tiny_source.config.vision_config, frame_resize="stretch")
    frames = read_clip_frames(
        Clip("box", clip, 0.4, ()), replace(tiny_source.config, vision_config=vision)
    )
    with VideoFile(clip, fps=2) as video:
        image = next(iter(video)).image
    theirs = np.empty_like(frames.pixels[0])
    stretch(image, theirs)
    np.testing.assert_array_equal(frames.pixels, theirs[None])


def test_a_clip_ends_at_the_duration_of_its_line(frames):
    assert len(frames.pixels) == 12  # 0 to 5.5 s of 15.2 s at 2 frames/s


@pytest.mark.parametrize(("duration_s", "count"), [(0.0, 1), (0.4, 1), (0.5, 2), (30.0, 61)])
def test_the_last_frame_is_not_after_the_end(tmp_path, duration_s, count):
    assert Clip("x", tmp_path, duration_s, ()).most_frames(fps=2.0) == count


def test_the_frames_of_a_clip_are_counted_where_its_header_contradicts_the_line(clip):
    """The webcam's video is 15.2 s long."""
    assert num_clip_frames(Clip("box", clip, 5.9, ()), fps=2.0) == 12
    assert num_clip_frames(Clip("box", clip, 16.0, ()), fps=2.0) == 33  # within the slack
    assert num_clip_frames(Clip("box", clip, MAX_DURATION_S, ()), fps=2.0) == 31


def test_a_seed_depends_only_on_the_clips_uid(clips):
    assert seed_of(clips[0]) != seed_of(clips[1])
    assert seed_of(Clip("clip0", clips[0].video, 1.0, ())) == seed_of(clips[0])
