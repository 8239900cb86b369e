"""A folder is written by one process at a time, and a killed process holds no lock."""

import errno
import os
import subprocess
import sys

import pytest

from mod_edge.bundle.folder_lock import locked_folder
from mod_edge.errors import ConfigError
from tests.bounded import BoundedProcess

HOLD = """
import sys
from pathlib import Path
from mod_edge.bundle.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1]), Path("model")):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_at_once_and_told_why(tmp_path):
    folder, output = tmp_path / "new" / "model.partial", tmp_path / "new" / "model"
    with locked_folder(folder, output):
        assert folder.is_dir()
        with (
            pytest.raises(ConfigError, match=r"another process is writing .*model .*until it ends"),
            locked_folder(folder, output),
        ):
            pytest.fail("both hold it")
    with locked_folder(folder, output):
        assert list(folder.iterdir()) == []  # no lock file


def test_other_folders_are_free(tmp_path):
    with locked_folder(tmp_path / "a", tmp_path), locked_folder(tmp_path / "b", tmp_path):
        pass


def test_a_folder_that_its_holder_removed_is_locked_anew(tmp_path):
    folder = tmp_path / "model.partial"
    with locked_folder(folder, tmp_path):
        folder.rmdir()
        with locked_folder(folder, tmp_path):
            assert folder.is_dir()


def test_a_folder_that_is_removed_while_another_process_opens_it_is_made_again(
    tmp_path, monkeypatch
):
    folder, num_locked = tmp_path / "model.partial", []

    def removes_it(_descriptor, _operation):
        num_locked.append(1)
        if len(num_locked) == 1:
            folder.rmdir()

    monkeypatch.setattr("mod_edge.bundle.folder_lock.fcntl.flock", removes_it)
    with locked_folder(folder, tmp_path):
        assert folder.is_dir()
    assert len(num_locked) == 2


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    folder = tmp_path / "model.partial"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with BoundedProcess(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.next_line() == b"locked\n"
        with (
            pytest.raises(ConfigError, match="another process is writing"),
            locked_folder(folder, tmp_path),
        ):
            pytest.fail("both hold it")
        process.kill()
    with locked_folder(folder, tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch, code):
    def fail(_descriptor, _operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("mod_edge.bundle.folder_lock.fcntl.flock", fail)
    with locked_folder(tmp_path / "model.partial", tmp_path):
        assert (tmp_path / "model.partial").is_dir()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"x\.partial cannot be written: .*another output"),
        locked_folder(tmp_path / "file" / "x.partial", tmp_path),
    ):
        pytest.fail("it was locked")
