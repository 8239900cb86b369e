"""Write folders and files atomically."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_edge.bundle.disk_full import names_target
from mod_edge.bundle.mount_points import has_mount_point
from mod_edge.errors import ConfigError, joined_faults

INSIDE_PREFIX = ".incomplete-"  # of a temporary folder inside the folder that is written
LOST_FOUND = "lost+found"  # of the file system, in a disk that is mounted as the output
NUM_FILES_SHOWN = 3


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write.

    Attributes:
        marker: name of the file by which such a folder is recognised.
        is_at: whether a folder is one.
        files: matches the paths, inside such a folder, of all files that commands write there.
    """

    marker: str
    is_at: Callable[[Path], bool]
    files: re.Pattern[str]

    def foreign_files(self, folder: Path) -> list[str]:
        """Paths inside `folder` of the files that no command wrote."""
        paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        names = sorted(path.relative_to(folder).as_posix() for path in paths)
        own = (name for name in names if not name.startswith(f"{LOST_FOUND}/"))
        return [name for name in own if not self.files.fullmatch(name)]


@contextmanager
def staged_folder(
    target: Path,
    *,
    kind: FolderKind,
    force: bool,
    carried: Sequence[str] = (),
) -> Iterator[Path]:
    """A temporary folder whose contents become those of `target` if the block ends without error.

    It is beside `target` and takes its place. Where `target` cannot be renamed (a mount point such
    as a container's volume, or a folder in a read-only one), it is inside, and the contents are
    exchanged: a kill within these few renames leaves both in `.incomplete-*` and no marker.

    On an error or Ctrl-C the temporary folder is removed and `target` stays as it was, also if the
    replacement itself is interrupted.

    Args:
        target: the folder to make.
        kind: of the folder.
        force: replace an existing `target` if it is such a folder or empty. Never another one, nor
            one with other files in it: a mistyped path must not delete a home folder.
        carried: subfolders of a replaced `target` to keep.

    Raises:
        ConfigError: `target` exists and `force` is not given, `target` is something else or holds
            other files, or the folder cannot be written.
    """
    target = target.resolve()
    _refuse_other(target, kind, force=force)
    staging = _new_staging(target)
    content, replaced = staging / "new", staging / "old"
    unwanted = [content]
    try:
        with names_target(target):
            content.mkdir()
            yield content
        if target.exists():  # the folder or files in it may have come during the block
            _require_force(target, force)
            _refuse_foreign_files(target, kind, staging.name)
        if staging.parent == target:
            replaced.mkdir()
            _move_all(_moves_inside(target, content, replaced, kind.marker, carried))
        else:
            _move_all(_moves_beside(target, content, replaced, carried))
        unwanted.append(replaced)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        for folder in unwanted:  # also if the removal above was interrupted
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (replaced, staging):
            with suppress(OSError):  # keeps old contents that could not be moved back
                folder.rmdir()


def check_target(target: Path, *, kind: FolderKind, force: bool) -> None:
    """Raise the errors of `staged_folder` early, for commands that work long before they write.

    Raises:
        ConfigError: `target` exists and `force` is not given, it is something else or holds other
            files, or it cannot be written.
    """
    target = target.resolve()
    _refuse_other(target, kind, force=force)
    _new_staging(target).rmdir()


def write_whole(path: Path, data: Any) -> None:
    """Write a buffer of bytes to a file atomically."""
    # A name of its own: two processes may write the same file at one time.
    staging = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with names_target(path), staging.open("wb") as file:
            file.write(data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _refuse_other(target: Path, kind: FolderKind, *, force: bool) -> None:
    if not target.exists():
        return
    _require_force(target, force)
    if other := sorted(target.glob(f"{INSIDE_PREFIX}*")):
        raise ConfigError(
            f"{other[0]} is of a command that was killed or still runs; if none runs, remove it "
            "(it may hold the former contents)"
        )
    is_empty = target.is_dir() and all(path.name == LOST_FOUND for path in target.iterdir())
    if not (is_empty or (target.is_dir() and kind.is_at(target))):
        raise ConfigError(
            f"{target} exists and was not made by this command, so --force does not replace it; "
            "remove it yourself or use another folder"
        )
    _refuse_foreign_files(target, kind)


def _require_force(target: Path, force: bool) -> None:
    if not force:
        raise ConfigError(f"{target} exists already; use --force to replace it, or another folder")


def _refuse_foreign_files(target: Path, kind: FolderKind, but: str = "") -> None:
    """Raise if there are files in `target` that no command wrote, except in the folder `but`."""
    names = kind.foreign_files(target)
    if foreign := [name for name in names if not (but and name.startswith(f"{but}/"))]:
        raise ConfigError(
            f"{target} holds files that this command did not make, which --force would delete: "
            f"{joined_faults(foreign, NUM_FILES_SHOWN)}; move them away or use another folder"
        )


def _new_staging(target: Path) -> Path:
    """A new temporary folder on the target's disk: beside it, or inside if it must stay."""
    try:
        if not has_mount_point(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            except OSError as exc:
                is_read_only = exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
                if not is_read_only or not target.is_dir():
                    raise
        return Path(tempfile.mkdtemp(prefix=INSIDE_PREFIX, dir=target))
    except OSError as exc:
        raise ConfigError(
            f"{target} cannot be written: {exc.strerror}; choose a writable folder"
        ) from exc


def _moves_beside(
    target: Path, content: Path, replaced: Path, carried: Sequence[str]
) -> list[tuple[Path, Path]]:
    """The renames that put the folder `content` in the place of `target`, if that exists."""
    moves = [(target, replaced)] if target.exists() else []
    kept = [name for name in carried if (target / name).exists()]
    return [*moves, (content, target), *((replaced / name, target / name) for name in kept)]


def _moves_inside(
    target: Path, content: Path, replaced: Path, marker: str, carried: Sequence[str]
) -> list[tuple[Path, Path]]:
    """The renames that exchange the contents of `target` for those of `content`.

    The marker goes first and comes last, so that a half-filled folder is not taken for a whole one.
    """
    staying = {replaced.parent.name, LOST_FOUND, *carried}
    old = [path for path in target.iterdir() if path.name not in staying]
    old.sort(key=lambda path: path.name != marker)
    new = sorted(content.iterdir(), key=lambda path: path.name == marker)
    moves = [(path, replaced / path.name) for path in old]
    return [*moves, *((path, target / path.name) for path in new)]


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each path to the one beside it, or on an error or Ctrl-C none."""
    begun: list[tuple[Path, Path]] = []
    made: set[Path] = set()
    try:
        for move in moves:
            begun.append(move)
            _move(*move, made)
    except BaseException:
        for source, destination in reversed(begun):
            _move_back(source, destination, made)
        raise


def _move(source: Path, destination: Path, made: set[Path]) -> None:
    """Rename a path; a folder that cannot be renamed is moved file by file.

    In a container, overlayfs refuses to rename the folders of the image (EXDEV), but not its files.
    `made` gets the folders that are made for this.
    """
    try:
        source.rename(destination)
    except OSError as exc:
        if exc.errno != errno.EXDEV or source.is_symlink() or not source.is_dir():
            raise
        destination.mkdir()
        made.add(destination)
        for path in list(source.iterdir()):
            _move(path, destination / path.name, made)
        source.rmdir()


def _move_back(source: Path, destination: Path, made: set[Path]) -> None:
    """Undo a move to `destination`, which may not have been made, or only for some files."""
    if not os.path.lexists(source):
        _move(destination, source, set())
    elif destination in made:
        for path in list(destination.iterdir()):
            _move_back(source / path.name, path, made)
        destination.rmdir()
