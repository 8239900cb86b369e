"""The event file: whole lines at every time, lost ones counted, reopened by SIGHUP."""

import errno
import json
import os
import signal
import stat

import pytest

from mod_edge.commands.event_file import TAIL_BYTES, EventFile, EventFileView
from mod_edge.errors import ConfigError, ModEdgeError
from mod_edge.plan.protocol import Decision
from mod_edge.runtime.events import FrameEvent, ReplyEvent, TextEvent
from tests.file_size_limit import file_size_limit


def frame(index):
    return FrameEvent(index / 2, index, Decision.SILENT, 0.1, 1.0, 2.0, 0.1, 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def file(path):
    with EventFile(path) as opened:
        yield opened


# ---- lines ----


def test_every_line_is_in_the_file_as_soon_as_it_is_appended(file, path):
    for number in range(3):
        file.append(f'{{"number": {number}}}')
        assert json.loads(path.read_text().splitlines()[number]) == {"number": number}


def test_a_second_run_appends_to_the_first_ones_lines(path):
    for number in range(2):
        with EventFile(path) as file:
            file.append(str(number))
    assert path.read_text() == "0\n1\n"


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("", ""),
        ("0\n1\n", "0\n1\n"),
        ("0\n1", "0\n"),
        ("torn", ""),
        ("0\n" + "x" * (2 * TAIL_BYTES + 7), "0\n"),
        ("y" * (2 * TAIL_BYTES + 7), ""),
        ("0\n\0\0\0", "0\n"),  # of some file systems, after a power failure
    ],
    ids=["empty", "whole", "torn", "only torn", "long torn", "long only torn", "null bytes"],
)
def test_a_torn_last_line_is_cut_off_and_whole_lines_stay(path, found, kept):
    path.write_text(found)
    with EventFile(path) as file:
        file.append("new")
    assert path.read_text() == kept + "new\n"


def test_what_is_not_a_file_is_refused_without_waiting_for_a_reader(path):
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"events\.jsonl is not a file: .* for a pipe use --json"):
        EventFile(path)
    with pytest.raises(ConfigError, match=r"is not a file: .* for a pipe use --json"):
        EventFile(path.parent)


def test_a_folder_that_is_missing_is_an_error_that_names_the_file_and_what_to_do(tmp_path):
    says = r"nowhere/events\.jsonl cannot be opened: No such file or directory; check that its fo"
    with pytest.raises(ModEdgeError, match=says):
        EventFile(tmp_path / "nowhere" / "events.jsonl")


def test_others_may_read_the_file_but_not_write_it(file, path):
    assert stat.S_IMODE(path.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH) == 0


# ---- a full disk ----


def test_on_a_full_disk_lines_are_lost_whole_and_counted_and_said_once(file, path, capsys):
    file.append("0123456789")
    with file_size_limit(path.stat().st_size + 5):  # in the middle of the next line
        for _ in range(3):
            file.append("abcdefghij")
            assert path.read_text() == "0123456789\n"
    file.append("after")
    assert path.read_text() == "0123456789\nafter\n"
    assert file.num_lost == 3
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path} cannot be written: File too large; the stream goes")


def test_a_disk_that_fills_up_again_is_said_again(file, path, capsys):
    for _ in range(2):
        with file_size_limit(path.stat().st_size):
            file.append("lost")
        file.append("written")
    assert file.num_lost == 2
    assert capsys.readouterr().err.count("cannot be written") == 2


@pytest.mark.parametrize("fails", [["write", "ftruncate"], ["fstat", "write"]])
def test_a_failing_disk_never_stops_the_caller_and_its_torn_line_is_cut(
    file, path, monkeypatch, fails
):
    """A file system that turned read-only refuses every change, a lost network one every call."""
    file.append("before")
    write = os.write

    def tears(number, data):
        if len(data) == len(b"torn line\n"):
            return write(number, data[:4])
        return refuses()

    def refuses(*_args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as failing:
        for name in fails:
            failing.setattr(os, name, tears if name == "write" else refuses)
        file.append("torn line")
        file.append("lost")
    assert file.num_lost == 2
    file.append("after")
    assert path.read_text() == "before\nafter\n"


# ---- reopening ----


def test_sighup_has_a_file_that_was_moved_made_again_with_the_next_line(file, path, tmp_path):
    file.append("before")
    path.rename(tmp_path / "events.jsonl.1")
    file.append("between")
    signal.raise_signal(signal.SIGHUP)
    assert not path.exists()
    file.append("after")
    assert (tmp_path / "events.jsonl.1").read_text() == "before\nbetween\n"
    assert path.read_text() == "after\n"


def test_if_the_file_cannot_be_made_again_the_old_one_is_kept(tmp_path, capsys):
    folder = tmp_path / "log"
    folder.mkdir()
    with EventFile(folder / "events.jsonl") as file:
        folder.rename(tmp_path / "moved")
        signal.raise_signal(signal.SIGHUP)
        file.append("still here")
    assert (tmp_path / "moved" / "events.jsonl").read_text() == "still here\n"
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.count(str(folder)) == 1
    assert warning.endswith(
        "events.jsonl cannot be opened: No such file or directory; check that its folder exists "
        "and that you may write there; the old file is kept"
    )


def test_sighup_is_handled_as_before_once_the_terminal_is_closed(path, monkeypatch):
    received = []
    before = signal.signal(signal.SIGHUP, lambda number, _frame: received.append(number))
    try:
        with EventFile(path):
            signal.raise_signal(signal.SIGHUP)
            assert received == []
            monkeypatch.setattr("mod_edge.commands.event_file.has_closed_terminal", lambda: True)
            signal.raise_signal(signal.SIGHUP)
            assert received == [signal.SIGHUP]
        signal.raise_signal(signal.SIGHUP)
        assert received == 2 * [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_ignored_sighup_stays_ignored(path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with EventFile(path):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_was_handed_back_before_the_file_is_closed_stays(path):
    before = signal.getsignal(signal.SIGHUP)
    with EventFile(path):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


# ---- the view ----


def test_events_are_written_as_json_prints_them_without_single_tokens(file, path):
    view = EventFileView(None, file)
    reply = ReplyEvent(0.5, None, "It moves.\n", [3, 4], False, 1.0, 1.0)
    for event in (frame(0), TextEvent(0.5, "It", 3), reply):
        view.show(event)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written == [frame(0).to_json(), reply.to_json()]


def test_several_streams_share_a_file_and_each_event_names_its_own(file, path):
    for name in ("door", "yard"):
        EventFileView(None, file, stream=name).show(frame(0))
    assert [json.loads(line)["stream"] for line in path.read_text().splitlines()] == [
        "door",
        "yard",
    ]


def test_lost_events_are_in_a_warning_at_the_end(path, capsys):
    with EventFile(path) as file:
        with file_size_limit(path.stat().st_size):
            file.append("lost")
            file.append("lost")
        file.append("written")
    assert path.read_text() == "written\n"
    assert capsys.readouterr().err.endswith(f"{path}: 2 events could not be written\n")
