"""What opens under which name."""

import shutil
from pathlib import Path

import pytest

from mod_edge.runtime.capture.open_source import open_source

CLIP = Path(__file__).resolve().parents[2] / "data" / "box.mp4"  # 31 frames at 2/s


@pytest.mark.parametrize(
    "name",
    ["2024-05-01T12:30:00.mp4", "cam:1.mp4", "http:x.mp4", "-clip.mp4", "clip%03d.mp4", " a.mp4"],
)
def test_a_file_may_have_any_name(tmp_path, monkeypatch, name):
    shutil.copy(CLIP, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with open_source(name, fps=2) as video:
        assert len(list(video)) == 31
        assert video.warnings == []


def test_a_file_by_address_is_a_file(tmp_path):
    shutil.copy(CLIP, tmp_path / "a b.mp4")
    with open_source(f"file://{tmp_path}/a%20b.mp4", fps=2) as video:
        assert not video.is_live
        assert len(list(video)) == 31
