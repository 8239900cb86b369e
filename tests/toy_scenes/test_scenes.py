"""The data set of synthetic scenes."""

import errno
import json
import math
import os
import shutil
import signal
from multiprocessing import active_children

import pytest

from mod_edge.data.clips import read_clips
from mod_edge.dataclass_reader import MAX_INT
from mod_edge.errors import ConfigError, DataError
from mod_edge.runtime.capture.video_file import VideoFile
from mod_edge.toy_scenes import scenes as scenes_module
from mod_edge.toy_scenes.render import Renderer
from mod_edge.toy_scenes.scene import HELD_OUT
from mod_edge.toy_scenes.scene_generator import write_scene
from mod_edge.toy_scenes.scenes import (
    MARKER_FILE,
    SCENE_DATA_SET,
    scenes_of_clips,
    write_scenes,
    write_video,
)
from tests.file_size_limit import file_size_limit

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


@pytest.mark.parametrize("duration_s", [0.0, 1e7, 1e300, math.inf, math.nan])
def test_a_length_beyond_reason_is_refused(tmp_path, duration_s):
    with pytest.raises(DataError, match=r"duration_s=.*, wanted more than 0 and at most 86400"):
        write_scenes(tmp_path / "data", {"train": 1}, seed=0, force=False, duration_s=duration_s)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, MAX_INT + 1])
def test_a_seed_that_the_marker_file_cannot_be_read_with_is_refused(tmp_path, seed):
    with pytest.raises(DataError, match=rf"seed={seed}, wanted 0 to {MAX_INT}"):
        write_scenes(tmp_path / "data", {"train": 1}, seed=seed, force=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "cannot be read: Expecting value"),
        ("[]", "is not a JSON object"),
        ('{"seed": 1}', "missing field 'duration_s'"),
        ('{"seed": "1", "duration_s": 8, "clips": {}}', "seed='1', wanted a whole number"),
        ('{"seed": 1, "duration_s": 1e300, "clips": {}}', r"duration_s=1e\+300, wanted more"),
        pytest.param("[" * 100_000, "nested in more than 64 levels", id="brackets"),
        pytest.param(f'{{"seed": {"9" * 400}}}', "of more than 300 digits", id="digits"),
    ],
)
def test_a_damaged_marker_file_is_named(tmp_path, content, fault):
    (tmp_path / MARKER_FILE).write_text(content)
    with pytest.raises(DataError, match=rf"scenes\.json.*{fault}"):
        list(scenes_of_clips(tmp_path, []))


def test_scenes_of_another_generator_are_not_taken_for_this_ones(data, tmp_path):
    facts = json.loads((data / MARKER_FILE).read_text())
    del facts["generator"]  # as version 1 wrote it
    (tmp_path / MARKER_FILE).write_text(json.dumps(facts))
    with pytest.raises(DataError, match="version 1 of the scene generator, this is version 2"):
        list(scenes_of_clips(tmp_path, []))


def test_a_clips_scene_is_generated_again_with_all_its_captions(data):
    for split in ("train", "combinations"):
        clips = read_clips(data, split)
        for clip, scene in zip(clips, scenes_of_clips(data, clips), strict=True):
            said = {(line.time_s, line.content) for line in clip.conversation}
            assert said >= {(each.time_s, each.text) for each in scene.happenings}


# ---- a full disk ----


@pytest.mark.parametrize("limit_bytes", [0, 2000])  # the header does not fit, nor does the end
def test_a_full_disk_is_not_called_a_missing_encoder(tmp_path, limit_bytes, capfd):
    renderer = Renderer(write_scene(3, DURATION_S, held_out=False), 128, ())
    with pytest.raises(OSError, match="File too large") as caught, file_size_limit(limit_bytes):
        write_video(tmp_path / "a.mp4", renderer, DURATION_S)
    assert caught.value.errno == errno.EFBIG
    assert capfd.readouterr().err == ""


def test_a_full_disk_names_the_data_set_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="File too large") as caught, file_size_limit(2000):
        write_scenes(tmp_path / "data", {"train": 2}, seed=0, force=False, duration_s=DURATION_S)
    assert caught.value.filename == str(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    class NoWriter:
        fourcc = staticmethod(lambda *_letters: 0)

        def __init__(self, *_arguments):
            pass

        def isOpened(self):  # noqa: N802
            return False

    monkeypatch.setattr(scenes_module.cv2, "VideoWriter", NoWriter)
    renderer = Renderer(write_scene(3, DURATION_S, held_out=False), 128, ())
    with pytest.raises(DataError, match=r"a\.mp4 cannot be written: this OpenCV has no MPEG-4"):
        write_video(tmp_path / "a.mp4", renderer, DURATION_S)


def test_a_video_that_is_not_whole_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes_module, "_num_frames", lambda _path: 7)
    renderer = Renderer(write_scene(3, DURATION_S, held_out=False), 128, ())
    with pytest.raises(
        DataError, match=r"a\.mp4 has 7 of 32 frames: it could not be written whole"
    ):
        write_video(tmp_path / "a.mp4", renderer, DURATION_S)
