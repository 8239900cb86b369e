"""Folders and files are written atomically, also when interrupted."""

from pathlib import Path

import pytest

from mod_edge.bundle.staging import staged_folder, write_whole
from mod_edge.errors import ConfigError


@pytest.fixture
def target(tmp_path):
    """An existing folder with one file."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def has_old(folder):
    return (folder / "old").is_file()


def tree_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_the_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "not yet" / "bundle"
    with staged_folder(target, is_ours=has_old, force=False) as folder:
        (folder / "new").write_text("new")
        assert not target.exists()
        assert folder.parent.parent == target.parent  # the same disk: a rename, not a copy
    assert tree_of(tmp_path) == {
        "not yet": None,
        "not yet/bundle": None,
        "not yet/bundle/new": "new",
    }


def test_the_folder_has_the_permissions_of_any_new_folder(tmp_path):
    (tmp_path / "ordinary").mkdir()
    with staged_folder(tmp_path / "bundle", is_ours=has_old, force=False):
        pass
    modes = [(tmp_path / name).stat().st_mode for name in ("ordinary", "bundle")]
    assert modes[0] == modes[1]  # tempfile's folders are closed to others


def end_half_way(target, error, *, force):
    with staged_folder(target, is_ours=has_old, force=force) as folder:
        (folder / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_block_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        end_half_way(tmp_path / "bundle", error, force=False)
    assert tree_of(tmp_path) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_block_leaves_the_old_folder_unchanged(tmp_path, target, error):
    with pytest.raises(error):
        end_half_way(target, error, force=True)
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_an_existing_folder_is_not_replaced_without_force(tmp_path, target):
    with (
        pytest.raises(ConfigError, match=r"bundle exists already; use --force"),
        staged_folder(target, is_ours=has_old, force=False),
    ):
        pytest.fail("the block must not begin")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_force_replaces_the_whole_folder(tmp_path, target):
    with staged_folder(target, is_ours=has_old, force=True) as folder:
        (folder / "new").write_text("new")
        assert (target / "old").exists()  # until the very end
    assert tree_of(tmp_path) == {"bundle": None, "bundle/new": "new"}


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_during_the_replacement_keeps_the_old_folder(
    tmp_path, target, monkeypatch, call
):
    rename, num_calls = Path.rename, 0

    def interrupted(self, other):
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        staged_folder(target, is_ours=has_old, force=True) as folder,
    ):
        (folder / "new").write_text("new")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_force_never_replaces_another_kind_of_folder(tmp_path, target):
    with (
        pytest.raises(ConfigError, match=r"was not made by this command.*remove it yourself"),
        staged_folder(target, is_ours=lambda _folder: False, force=True),
    ):
        pytest.fail("the block must not begin")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_force_fills_an_empty_folder(tmp_path):
    (tmp_path / "bundle").mkdir()
    with staged_folder(tmp_path / "bundle", is_ours=has_old, force=True) as folder:
        (folder / "new").write_text("new")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/new": "new"}


# ---- files ----


def test_a_file_is_written_and_replaced(tmp_path):
    for data in (b"first", memoryview(b"second")):
        write_whole(tmp_path / "file.bin", data)
        assert tree_of(tmp_path) == {"file.bin": bytes(data).decode()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    (tmp_path / "file.bin").write_text("old")

    def ends(_self, _target):
        raise error

    monkeypatch.setattr(Path, "replace", ends)
    with pytest.raises(error):
        write_whole(tmp_path / "file.bin", b"new")
    assert tree_of(tmp_path) == {"file.bin": "old"}
