"""Folders and files that appear whole or not at all."""

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
    """A temporary folder beside `target` that takes its place when the block ends without error.

    Whatever ends the block early, Ctrl-C included, removes the temporary folder and leaves `target`
    as it was; what ends the exchange itself brings `target` back.

    Args:
        target: the folder to make.
        is_ours: whether a folder is one that this command makes.
        force: replace such a folder, or an empty one, if it is there already. Never any other: a
            mistyped path must not cost somebody's home.
        carried: folders in a replaced `target` that move into the new one.

    Raises:
        ConfigError: `target` exists and `force` is not given, it is something else, or nothing
            can be written there.
    """
    target = target.resolve()
    check_target(target, is_ours=is_ours, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as exc:
        raise ConfigError(
            f"{target} cannot be written: {exc.strerror}; name a folder that can be"
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
            replaced.rename(target)  # ended between the two renames
        shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path, *, is_ours: Callable[[Path], bool], force: bool) -> None:
    """Refuse what `staged_folder` would refuse; for commands that take long before they write.

    Raises:
        ConfigError: `target` exists and `force` is not given, or it is something else.
    """
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already; use --force to replace it, or another folder")
    if target.exists() and not _is_replaceable(target, is_ours):
        raise ConfigError(
            f"{target} is there and is nothing that this command makes; "
            "--force does not replace it: remove it yourself or name another folder"
        )


def write_whole(path: Path, data: Any) -> None:
    """Write a file that is there as a whole or as it was before; `data` is a buffer of bytes."""
    staging = path.with_name(f"{path.name}.new")
    try:
        with staging.open("wb") as file:
            file.write(data)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _is_replaceable(target: Path, is_ours: Callable[[Path], bool]) -> bool:
    return target.is_dir() and (not any(target.iterdir()) or is_ours(target))
