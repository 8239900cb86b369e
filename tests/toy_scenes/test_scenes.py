"""The data set of synthetic scenes."""

import os
import shutil
import signal
from multiprocessing import active_children

import pytest

from mod_edge.data.clips import read_clips
from mod_edge.errors import ConfigError, DataError
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.toy_scenes.scene import HELD_OUT
from mod_edge.toy_scenes.scenes import SCENE_DATA_SET, write_scenes

DURATION_S = 8.0


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    counts = {"train": 2, "combinations": 1}
    write_scenes(folder, counts, seed=3, force=False, photographs=clip, duration_s=DURATION_S)
    return folder


def test_the_requested_splits_are_written(data):
    assert sorted(path.name for path in data.iterdir()) == [
        "combinations.jsonl",
        "scenes.json",
        "train.jsonl",
        "videos",
    ]
    assert [clip.uid for clip in read_clips(data, "train")] == ["train-000000", "train-000001"]
    assert SCENE_DATA_SET.foreign_files(data) == []


def test_videos_can_be_read_and_have_the_right_length(data):
    (clip,) = read_clips(data, "combinations")
    with VideoFile(clip.video, fps=2.0) as video:
        frames = list(video)
    assert len(frames) == 16
    assert frames[0].image.shape == (128, 128, 3)


def test_only_the_combinations_split_shows_held_out_combinations(data):
    def shows_held_out(clip):
        text = " ".join(line.content.lower() for line in clip.conversation)
        return any(f"{colour} {shape}" in text for colour, shape in HELD_OUT)

    assert not any(map(shows_held_out, read_clips(data, "train")))


def test_a_users_own_data_set_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").touch()
    with pytest.raises(ConfigError, match="was not made by this command"):
        write_scenes(tmp_path / "mine", {"train": 1}, seed=0, force=True)


def test_a_folder_whose_name_is_not_utf_8_is_refused_with_its_name(tmp_path):
    folder = tmp_path / os.fsdecode(b"sc\xe9nes")
    with pytest.raises(ConfigError, match=r"sc\\udce9nes' is not UTF-8.*rename"):
        write_scenes(folder, {"train": 1}, seed=0, force=False)
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_is_one_error_with_the_signal(tmp_path):
    def kill_one(name, done, total):
        if done == 1:
            os.kill(active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(DataError, match="draws clips died: SIGKILL, usually out of memory"):
        write_scenes(tmp_path / "data", {"train": 40}, seed=3, force=False, on_step=kill_one)
    assert not list(tmp_path.iterdir())


def test_a_users_video_in_a_data_set_is_never_deleted(data, tmp_path):
    copied = shutil.copytree(data, tmp_path / "data")
    (copied / "videos" / "holiday.mp4").touch()
    (copied / ".features").mkdir()  # what training caches is no such file
    (copied / ".features" / "frames.f16").touch()
    with pytest.raises(ConfigError, match=r"delete: videos/holiday\.mp4; move them away"):
        write_scenes(copied, {"train": 1}, seed=0, force=True)


def test_a_data_set_without_clips_is_refused(tmp_path):
    with pytest.raises(DataError, match="would have no clips"):
        write_scenes(tmp_path / "data", {"train": 0}, seed=0, force=False)
