"""A full disk: which errors mean it, and which file could not be written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# No space on the disk, in the user's quota, or within the process's limit on the size of a file.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def names_target(target: Path) -> Iterator[None]:
    """Name `target` in the error of a disk that fills up while the block writes it.

    An OSError of a write names no file, and one in a temporary folder names a file that the user
    has never heard of.

    Raises:
        OSError: with `target` as its file name.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno not in DISK_FULL:
            raise
        raise OSError(exc.errno, exc.strerror, str(target)) from exc


def full_disk_line(exc: OSError) -> str:
    """What cannot be written, why, and what to do."""
    what = exc.filename or "the output"
    return f"{what} cannot be written: {exc.strerror}; free some space, or write to another disk"
