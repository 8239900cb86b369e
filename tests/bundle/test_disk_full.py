"""The error of a full disk names what could not be written."""

import errno

import pytest

from mod_edge.bundle.disk_full import full_disk_line, names_target

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_names_the_target(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, names_target(tmp_path / "model"):
        raise FULL
    assert full_disk_line(caught.value) == (
        f"{tmp_path / 'model'} cannot be written: No space left on device; free some space, or "
        "write to another disk"
    )


def test_an_error_without_a_target_is_of_the_output():
    assert full_disk_line(FULL).startswith("the output cannot be written: No space left on device")


def test_other_errors_are_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, names_target(tmp_path / "model"):
        (tmp_path / "nothing").read_bytes()
    assert caught.value.filename == str(tmp_path / "nothing")
