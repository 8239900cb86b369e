"""Write folders and files atomically."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mod_edge.errors import ConfigError


@contextmanager
def staged_folder(
    target: Path,
    *,
    is_ours: Callable[[Path], bool],
    force: bool,
    carried: Sequence[str] = (),
) -> Iterator[Path]:
    """A temporary folder beside `target` that replaces it when the block ends without error.

    On an error or Ctrl-C the temporary folder is removed and `target` stays as it was, also if the
    replacement itself is interrupted.

    Args:
        target: the folder to make.
        is_ours: whether a folder is one that this command makes.
        force: replace an existing `target` if it is such a folder or empty. Never another one: a
            mistyped path must not delete a home folder.
        carried: subfolders of a replaced `target` to move into the new one.

    Raises:
        ConfigError: `target` exists and `force` is not given, `target` is something else, or the
            folder cannot be written.
    """
    target = target.resolve()
    check_target(target, is_ours=is_ours, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as exc:
        raise ConfigError(
            f"{target} cannot be written: {exc.strerror}; choose a writable folder"
        ) from exc
    content, replaced = staging / "new", staging / "old"
    try:
        content.mkdir()
        yield content
        if target.exists():
            target.rename(replaced)
        content.rename(target)
        for name in carried:
            if (replaced / name).exists():
                (replaced / name).rename(target / name)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)  # interrupted between the two renames
        shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path, *, is_ours: Callable[[Path], bool], force: bool) -> None:
    """Raise the errors of `staged_folder` early, for commands that work long before they write.

    Raises:
        ConfigError: `target` exists and `force` is not given, or it is something else.
    """
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already; use --force to replace it, or another folder")
    if target.exists() and not _is_replaceable(target, is_ours):
        raise ConfigError(
            f"{target} exists and was not made by this command, so --force does not replace it; "
            "remove it yourself or use another folder"
        )


def write_whole(path: Path, data: Any) -> None:
    """Write a buffer of bytes to a file atomically."""
    staging = path.with_name(f"{path.name}.new")
    try:
        with staging.open("wb") as file:
            file.write(data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _is_replaceable(target: Path, is_ours: Callable[[Path], bool]) -> bool:
    return target.is_dir() and (not any(target.iterdir()) or is_ours(target))
