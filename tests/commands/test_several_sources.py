"""`mod-edge run` with several sources, with images, and with the test pattern."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands.mod_edge_command import invoke, succeeds

QUERY = "Please narrate the video in real time."


@pytest.fixture
def folders(tmp_path):
    """Two folders of three images each."""
    made = [tmp_path / name for name in ("front", "back")]
    for shade, folder in enumerate(made):
        folder.mkdir()
        for number in range(3):
            image = np.full((31, 41, 3), 60 * number + 50 * shade, np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), image)
    return [str(folder) for folder in made]


def events_by_stream(result):
    """The events of each stream by its name, without their keys "stream"."""
    streams = {}
    for line in result.stdout.splitlines():
        event = json.loads(line)
        streams.setdefault(event.pop("stream"), []).append(event)
    return streams


def test_each_source_is_a_stream_with_its_name_in_json_its_frames_queries_and_summary(
    tiny_bundle, folders
):
    arguments = ("run", tiny_bundle, "--max-frames", 2, "--query", QUERY, "--max-new-tokens", 3)
    front, back = folders
    several = events_by_stream(
        succeeds(*arguments, "--source", front, "--source", back, "--source", front, "--json")
    )
    assert list(several) == [f"{front} (1)", back, f"{front} (2)"]
    for name, events in several.items():
        kinds = [event["event"] for event in events]
        assert (kinds.count("frame"), kinds.count("query"), kinds[-1]) == (2, 1, "summary"), name
    lines = succeeds(*arguments, "--source", back, "--json").stdout.splitlines()
    alone = [json.loads(line) for line in lines]
    keys = ("event", "time_s", "index", "decision", "token_ids")
    assert [[event.get(key) for key in keys] for event in several[back]] == [
        [event.get(key) for key in keys] for event in alone
    ]
    assert all("stream" not in event for event in alone)


def test_plain_lines_begin_with_the_streams_name_and_each_stream_has_a_summary(
    tiny_bundle, folders
):
    front, back = folders
    result = succeeds(
        *("run", tiny_bundle, "--source", front, "--source", back),
        *("--query", QUERY, "--max-new-tokens", 3),
    )
    lines = result.stdout.splitlines()
    for name in folders:
        assert f"{name}   0:00.0 query     {QUERY}" in lines
        assert lines[lines.index(name) + 1].startswith("frames     3 (")
    assert result.stderr.count("backend onnx") == 1


def test_a_source_that_fails_ends_its_stream_and_then_the_run_with_1(tiny_bundle, folders):
    front, back = folders
    Path(front, "1.png").write_bytes(b"not an image")
    result = invoke("run", tiny_bundle, "--source", front, "--source", back)
    assert result.exit_code == 1
    assert f"{front}   0:00.0 failure   {front}/1.png cannot be read as an image" in result.stdout
    lines = result.stdout.splitlines()
    counts = [lines[lines.index(name) + 1][:12] for name in folders]
    assert counts == ["frames     1", "frames     3"]
    assert f"error: stream '{front}': {front}/1.png cannot be read" in result.stderr


@pytest.mark.live
def test_the_test_pattern_runs_without_a_camera(tiny_bundle):
    result = succeeds("run", tiny_bundle, "--source", "test://", "--max-frames", 2, "--json")
    assert json.loads(result.stdout.splitlines()[-1])["num_frames"] == 2


def test_a_rate_of_images_without_images_is_a_usage_error(tiny_bundle, clip, folders):
    result = invoke("run", tiny_bundle, "--source", clip, "--image-fps", 10)
    assert result.exit_code == 2
    assert "only with a folder, a glob or an image" in result.stderr
    slow = succeeds("run", tiny_bundle, "--source", folders[0], "--image-fps", 1, "--json")
    assert json.loads(slow.stdout.splitlines()[-1])["num_frames"] == 5
