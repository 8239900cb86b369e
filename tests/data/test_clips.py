"""The data set format: reading, writing, and errors about faults."""

import json

import pytest

from mod_edge.data.clips import MAX_TEXT_CHARS, Clip, Line, read_clips, write_clips
from mod_edge.errors import DataError


@pytest.fixture
def clip(tmp_path):
    video = tmp_path / "videos" / "a.mp4"
    video.parent.mkdir()
    video.touch()
    lines = (
        Line("user", "What colour is the ball?", 1.0),
        Line("assistant", "Red.", 1.0),
        Line("assistant", "The red ball stops.", 2.5, "stops", ("red", "ball", "stops")),
    )
    return Clip("a", video, 4.0, lines)


def said(**more):
    return {"role": "assistant", "content": "x", "time": 1.0, **more}


def write_line(folder, **changes):
    conversation = [{"role": "assistant", "content": "A ball.", "time": 1.0}]
    (folder / "v.mp4").touch()
    data = {"video_uid": "v", "video": "v.mp4", "duration": 4.0, "conversation": conversation}
    (folder / "train.jsonl").write_text(json.dumps(data | changes) + "\n")


def test_clips_are_read_as_they_were_written(tmp_path, clip):
    write_clips(tmp_path, "train", [clip, clip])
    assert read_clips(tmp_path, "train") == [clip, clip]


def test_lines_have_the_published_format(tmp_path, clip):
    write_clips(tmp_path, "train", [clip])
    data = json.loads((tmp_path / "train.jsonl").read_text())
    assert data["video"] == "videos/a.mp4"
    assert data["conversation"][0] == {
        "role": "user",
        "content": "What colour is the ball?",
        "time": 1.0,
    }


def test_the_error_about_a_missing_split_says_where_its_format_is(tmp_path):
    with pytest.raises(DataError, match=r"no test\.jsonl.*clips\.py"):
        read_clips(tmp_path, "test")


def test_an_empty_split_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read_clips(tmp_path, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": "w.mp4"}, "no video .*w.mp4"),
        ({"duration": "long"}, "duration='long', wanted seconds"),
        ({"conversation": [{"role": "bot", "content": "x", "time": 1}]}, "role='bot', wanted one"),
        (
            {"conversation": [{"role": "user", "content": " ", "time": 1}]},
            "content=' ', wanted text",
        ),
        ({"conversation": [{"role": "user", "content": "x", "time": -1}]}, "time=-1, wanted"),
        ({"conversation": [{"role": "user", "content": "x", "time": 9}]}, "after the video's end"),
        ({"conversation": [said(time=2.0), said(time=1.0)]}, "not in order of time"),
        ({"conversation": [{"role": "user", "content": "x"}]}, "line 1: has no 'time'"),
        ({"conversation": {}}, "conversation is a dict, wanted a list"),
        ({"conversation": ["x"]}, "contains a str, wanted objects"),
        ({"video": "/v.mp4"}, "wanted a path inside the data set's folder"),
        ({"video": "../v.mp4"}, "wanted a path inside the data set's folder"),
        ({"conversation": [said(keys="red")]}, "keys='red', wanted a list of words"),
        ({"conversation": [said(keys=["!"])]}, "wanted a list of words"),
        ({"conversation": [said(keys=["nobody"])]}, "'nobody'.*wanted words of '.*' in their ord"),
        ({"conversation": [said(kind=None)]}, "kind=None, wanted a word"),
        ({"video": f"{'v' * 5000}.mp4"}, "line 1: video='vvv.*vvv.mp4' cannot be read: File name"),
        ({"duration": 1e7}, "line 1: duration=10000000.0, wanted at most 86400 seconds, a day"),
        ({"duration": 1e300}, r"line 1: duration=1e\+300, wanted at most 86400 seconds"),
        ({"duration": 10**299}, r"line 1: duration=1000+\.\.\.0+, wanted at most 86400 seconds"),
        (
            {"duration": 10**399},
            r"line 1: it has the number 100000000000\.\.\. of more than 300 dig",
        ),
        ({"duration": float("inf")}, "line 1: duration=inf, wanted seconds"),
        ({"conversation": [said(time=1e7)]}, "line 1: time=10000000.0, wanted at most 86400"),
        (
            {"conversation": [said(content="ball " * 20_000)]},
            "line 1: content='ball ball .* has 100000 characters, wanted at most 8000",
        ),
        ({"conversation": [said(kind="x" * 9000)]}, "line 1: kind='x.* has 9000 characters"),
        ({"video": 5}, "line 1: video=5, wanted a path inside the data set's folder"),
        ({"video_uid": "x" * 9000}, "line 1: video_uid='x.* has 9000 characters"),
        (
            {"conversation": [said(content="a ball \ud83d is")]},
            r"line 1: content='a ball \\ud83d is', wanted Unicode text, but character 8 is half",
        ),
        (
            {"conversation": [said(role="user", content="\udc00?")]},
            r"line 1: content='\\udc00\?', wanted Unicode text, but character 1 is half a char",
        ),
        (
            {"video_uid": "a\ud83d"},
            r"line 1: video_uid='a\\ud83d', wanted Unicode text",
        ),
        ({"conversation": [said(kind="\ud83d")]}, r"line 1: kind='\\ud83d', wanted Unicode text"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_faulty_line_is_named_by_its_number(tmp_path, changes, message):
    write_line(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        read_clips(tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 100_000, "line 2: its brackets are nested in more than 64 levels"),
        (b'{"video_uid": ' + b"7" * 5000 + b"}", "line 2: it has a number of more than 300 digits"),
        ('{"video_uid": "caf\xe9"}'.encode("latin-1"), "line 2: byte 19 is not UTF-8; save"),
        ("{}".encode("utf-16"), "line 2: byte 1 is not UTF-8; save the file as UTF-8"),
    ],
    ids=["brackets", "digits", "latin-1", "utf-16"],
)
def test_a_line_that_cannot_be_parsed_is_named_by_its_number(tmp_path, line, message):
    write_line(tmp_path)
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=message):
        read_clips(tmp_path, "train")


def test_whole_characters_and_long_replies_are_read(tmp_path):
    texts = ["\U0001f600 and \ud83d\ude00 are one", "x" * MAX_TEXT_CHARS]
    write_line(tmp_path, conversation=[said(content=text) for text in texts])
    (clip,) = read_clips(tmp_path, "train")
    smile, long = (line.content for line in clip.conversation)
    assert smile == "\U0001f600 and \U0001f600 are one"
    assert long == texts[1]


def test_many_faults_are_reported_at_once_and_counted(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n" * 11)
    with pytest.raises(DataError, match=r"line 8: has no .*; and 3 more"):
        read_clips(tmp_path, "train")


def test_unicode_line_separators_and_a_byte_order_mark_are_accepted(tmp_path):
    conversation = [said(content="one\u2028two\x85three")]
    (tmp_path / "v.mp4").touch()
    data = {"video_uid": "v", "video": "v.mp4", "duration": 4.0, "conversation": conversation}
    text = json.dumps(data, ensure_ascii=False)
    (tmp_path / "train.jsonl").write_text(f"\ufeff{text}\r\n", encoding="utf-8")
    (clip,) = read_clips(tmp_path, "train")
    assert clip.conversation[0].content == "one\u2028two\x85three"


def test_conversations_can_be_read_without_the_videos(tmp_path):
    write_line(tmp_path)
    (tmp_path / "v.mp4").unlink()
    (clip,) = read_clips(tmp_path, "train", needs_videos=False)
    assert clip.conversation
