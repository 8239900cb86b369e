"""Folders and files are written atomically, also when interrupted."""

import errno
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mod_edge.bundle import mount_points, staging
from mod_edge.bundle.mount_points import has_mount_point
from mod_edge.bundle.staging import FolderKind, check_target, staged_folder, write_whole
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


KIND = FolderKind("old", has_old, re.compile("old|new|half|layers/.*|engines/.*"))


def tree_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_the_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "not yet" / "bundle"
    with staged_folder(target, kind=KIND, force=False) as folder:
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
    with staged_folder(tmp_path / "bundle", kind=KIND, force=False):
        pass
    modes = [(tmp_path / name).stat().st_mode for name in ("ordinary", "bundle")]
    assert modes[0] == modes[1]  # tempfile's folders are closed to others


def replace_with_new(target):
    with staged_folder(target, kind=KIND, force=True) as folder:
        (folder / "new").write_text("new")


def end_half_way(target, error, *, force):
    with staged_folder(target, kind=KIND, force=force) as folder:
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
        staged_folder(target, kind=KIND, force=False),
    ):
        pytest.fail("the block must not begin")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_force_replaces_the_whole_folder(tmp_path, target):
    with staged_folder(target, kind=KIND, force=True) as folder:
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
        staged_folder(target, kind=KIND, force=True) as folder,
    ):
        (folder / "new").write_text("new")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_force_never_replaces_another_kind_of_folder(tmp_path, target):
    with (
        pytest.raises(ConfigError, match=r"was not made by this command.*remove it yourself"),
        staged_folder(target, kind=replace(KIND, is_at=lambda _folder: False), force=True),
    ):
        pytest.fail("the block must not begin")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def test_force_fills_an_empty_folder(tmp_path):
    (tmp_path / "bundle").mkdir()
    with staged_folder(tmp_path / "bundle", kind=KIND, force=True) as folder:
        (folder / "new").write_text("new")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/new": "new"}


# ---- files of others ----


@pytest.mark.parametrize("name", ["notes.txt", "videos/holiday.mp4", "old.txt", "Layers/0"])
def test_force_never_deletes_a_file_that_the_command_did_not_make(tmp_path, target, name):
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("of the user")
    before = tree_of(tmp_path)
    says = rf"bundle holds files that this command did not make, .* delete: {name}; move them away"
    with pytest.raises(ConfigError, match=says):
        check_target(target, kind=KIND, force=True)
    with pytest.raises(ConfigError, match=says), staged_folder(target, kind=KIND, force=True):
        pytest.fail("the block must not begin")
    assert tree_of(tmp_path) == before


def test_a_link_is_a_file_of_the_user_too(tmp_path, target):
    (tmp_path / "home").mkdir()
    (target / "link").symlink_to(tmp_path / "home")
    with pytest.raises(ConfigError, match="delete: link; move them away"):
        check_target(target, kind=KIND, force=True)


def test_many_files_of_others_are_named_in_part(target):
    for number in range(9):
        (target / f"{number}.txt").touch()
    with pytest.raises(ConfigError, match=r"0\.txt; 1\.txt; 2\.txt; and 6 more; move"):
        check_target(target, kind=KIND, force=True)


def test_a_file_that_came_while_the_command_worked_is_kept(tmp_path, target):
    def export_while_the_user_writes():
        with staged_folder(target, kind=KIND, force=True) as folder:
            (folder / "new").write_text("new")
            (target / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match=r"delete: notes\.txt; move"):
        export_while_the_user_writes()
    assert tree_of(tmp_path) == {
        "bundle": None,
        "bundle/notes.txt": "mine",
        "bundle/old": "old",
    }


# ---- folders that cannot be renamed ----


def test_a_folder_that_another_command_made_meanwhile_is_not_replaced_without_force(tmp_path):
    target = tmp_path / "bundle"

    def fill():
        with staged_folder(target, kind=KIND, force=False) as folder:
            (folder / "old").write_text("ours")
            target.mkdir()
            (target / "old").write_text("theirs")

    with pytest.raises(ConfigError, match="exists already; use --force"):
        fill()
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "theirs"}


def test_an_interrupt_while_the_old_folder_is_removed_leaves_nothing_of_it(
    tmp_path, target, monkeypatch
):
    rmtree, calls = shutil.rmtree, []

    def interrupted_once(folder, **options):
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted_once)

    with pytest.raises(KeyboardInterrupt):
        replace_with_new(target)
    assert tree_of(tmp_path) == {"bundle": None, "bundle/new": "new"}


@pytest.fixture
def no_place_beside(tmp_path, monkeypatch):
    """The folder in which the target is to be made is read-only, also for root."""
    mkdtemp = staging.tempfile.mkdtemp

    def refused(*, prefix, dir):
        if Path(dir) == tmp_path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return mkdtemp(prefix=prefix, dir=dir)

    monkeypatch.setattr(staging.tempfile, "mkdtemp", refused)


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """The target is a mount point, which the kernel does not rename."""
    rename = Path.rename

    def busy(self, other):
        if tmp_path / "bundle" in (self, Path(other)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(staging, "has_mount_point", lambda folder: folder == tmp_path / "bundle")


@pytest.fixture(params=["no_place_beside", "mounted"])
def fixed(request, target):
    """The existing folder, for two reasons not to be renamed."""
    request.getfixturevalue(request.param)
    return target


def test_the_contents_of_a_fixed_folder_are_exchanged(tmp_path, fixed):
    check_target(fixed, kind=KIND, force=True)
    with staged_folder(fixed, kind=KIND, force=True) as folder:
        (folder / "new").write_text("new")
        (folder / "layers").mkdir()
        assert has_old(fixed)
    assert tree_of(tmp_path) == {"bundle": None, "bundle/layers": None, "bundle/new": "new"}


def test_an_empty_fixed_folder_is_filled(tmp_path, fixed):
    (fixed / "old").unlink()
    with staged_folder(fixed, kind=KIND, force=True) as folder:
        (folder / "new").write_text("new")
    assert tree_of(tmp_path) == {"bundle": None, "bundle/new": "new"}


def test_a_fixed_folder_keeps_what_is_carried(tmp_path, fixed):
    (fixed / "engines").mkdir()
    (fixed / "engines" / "a").write_text("engine")
    with staged_folder(fixed, kind=KIND, force=True, carried=("engines",)) as folder:
        (folder / "old").write_text("new")
    assert tree_of(tmp_path) == {
        "bundle": None,
        "bundle/engines": None,
        "bundle/engines/a": "engine",
        "bundle/old": "new",
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_block_leaves_a_fixed_folder_unchanged(tmp_path, fixed, error):
    with pytest.raises(error):
        end_half_way(fixed, error, force=True)
    assert tree_of(tmp_path) == {"bundle": None, "bundle/old": "old"}


def exchange(fixed):
    with staged_folder(fixed, kind=KIND, force=True) as folder:
        for name in ("half", "new", "old"):
            (folder / name).write_text("new")


@pytest.mark.parametrize("call", range(1, 6))
@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
def test_an_interrupted_exchange_is_undone(tmp_path, fixed, monkeypatch, call, is_late):
    (fixed / "half").write_text("old")
    rename, num_calls = Path.rename, 0

    def interrupted(self, other):
        nonlocal num_calls
        num_calls += 1
        if num_calls == call and not is_late:
            raise KeyboardInterrupt
        rename(self, other)
        if num_calls == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exchange(fixed)
    assert tree_of(tmp_path) == {"bundle": None, "bundle/half": "old", "bundle/old": "old"}


@pytest.mark.parametrize("call", range(1, 6))
def test_a_kill_during_an_exchange_leaves_no_folder_that_looks_whole(
    tmp_path, fixed, monkeypatch, call
):
    (fixed / "half").write_text("old")
    rename, num_calls = Path.rename, 0

    def killed(self, other):
        nonlocal num_calls
        num_calls += 1
        if num_calls > call:  # nothing can be undone either
            raise OSError(errno.EIO, "killed")
        rename(self, other)

    monkeypatch.setattr(Path, "rename", killed)
    if call == 5:  # all of them
        exchange(fixed)
        assert tree_of(fixed) == {"half": "new", "new": "new", "old": "new"}
        return
    with pytest.raises(OSError, match="killed"):
        exchange(fixed)
    assert not has_old(fixed)  # the marker
    (left,) = fixed.glob(".incomplete-*")
    assert (left / "old" / "old").read_text() == "old"
    with pytest.raises(ConfigError, match=rf"{left} is of a command that was killed or still ru"):
        check_target(fixed, kind=KIND, force=True)


def test_a_new_folder_in_a_read_only_place_is_an_error_before_the_work(tmp_path, no_place_beside):
    says = r"cannot be written: Read-only file system; choose a writable folder"
    with pytest.raises(ConfigError, match=says):
        check_target(tmp_path / "bundle", kind=KIND, force=False)
    with (
        pytest.raises(ConfigError, match=says),
        staged_folder(tmp_path / "bundle", kind=KIND, force=False),
    ):
        pytest.fail("the block must not begin")


def test_a_real_mount_point_is_filled_and_replaced(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    command = shutil.which("mount")
    mount = [command, "-t", "tmpfs", "tmpfs", str(folder)]
    if not command or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root and Debian's package mount")
    try:
        assert has_mount_point(folder)
        assert has_mount_point(tmp_path)
        for name in ("old", "new"):
            with staged_folder(folder, kind=KIND, force=True) as content:
                (content / "old").write_text(name)
        assert tree_of(folder) == {"old": "new"}
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert not has_mount_point(tmp_path)


def test_a_new_disk_may_be_the_output(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    (disk / "lost+found").mkdir(parents=True)
    (disk / "lost+found" / "#12").touch()
    monkeypatch.setattr(staging, "has_mount_point", lambda folder: folder == disk)
    for text in ("first", "second"):
        with staged_folder(disk, kind=KIND, force=True) as content:
            (content / "old").write_text(text)
        assert tree_of(disk) == {"lost+found": None, "lost+found/#12": "", "old": text}


@pytest.fixture
def image_layer(target, monkeypatch):
    """The target's folders are of a container's image: overlayfs renames their files alone."""
    (target / "layers").mkdir()
    (target / "layers" / "00").write_text("old")
    of_image = {folder.stat().st_ino for folder in (target, target / "layers")}
    rename = Path.rename

    def refused(self, other):
        if self.stat().st_ino in of_image:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refused)
    return target


def test_a_folder_of_an_image_layer_is_replaced(tmp_path, image_layer):
    replace_with_new(image_layer)
    assert tree_of(tmp_path) == {"bundle": None, "bundle/new": "new"}


@pytest.mark.parametrize("num_renamed", range(4))
def test_an_interrupt_keeps_a_folder_of_an_image_layer(
    tmp_path, image_layer, monkeypatch, num_renamed
):
    before, rename, calls = tree_of(tmp_path), Path.rename, []

    def interrupted(self, other):
        calls.append(self)
        if len(calls) == num_renamed + 1:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)

    with pytest.raises(KeyboardInterrupt):
        replace_with_new(image_layer)
    assert tree_of(tmp_path) == before


def test_a_real_image_layer_is_replaced(tmp_path):
    lower, upper, work, merged = (tmp_path / name for name in ("lower", "upper", "work", "merged"))
    (lower / "bundle" / "layers").mkdir(parents=True)
    (lower / "bundle" / "old").write_text("old")
    (lower / "bundle" / "layers" / "00").write_text("old")
    for folder in (upper, work, merged):
        folder.mkdir()
    command = shutil.which("mount")
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
    mount = [command, "-t", "overlay", "overlay", "-o", options, str(merged)]
    if not command or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting an overlay needs root and a kernel with overlayfs")
    try:
        with staged_folder(merged / "bundle", kind=KIND, force=True) as content:
            (content / "new").write_text("new")
        assert tree_of(merged) == {"bundle": None, "bundle/new": "new"}
    finally:
        subprocess.run(["umount", str(merged)], check=True)


def test_a_folder_mounted_from_the_same_disk_is_in_the_kernels_list(tmp_path, monkeypatch):
    lines = [
        f"36 35 98:0 / {str(tmp_path).replace(' ', chr(92) + '040')}/a{chr(92)}040b rw - ext4 x rw",
        "37 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw",
    ]
    (tmp_path / "mounts").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mount_points, "MOUNTS_FILE", tmp_path / "mounts")
    assert has_mount_point(tmp_path / "a b")
    assert has_mount_point(tmp_path)
    assert not has_mount_point(tmp_path / "a")
    monkeypatch.setattr(mount_points, "MOUNTS_FILE", tmp_path / "no such file")
    assert not has_mount_point(tmp_path / "a b")


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
