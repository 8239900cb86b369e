"""A lock on a folder that only one process may write, for as long as that process lives."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mod_edge.errors import ConfigError

# Answers of file systems without locks, such as Lustre's default and NFS without its lock service.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked_folder(folder: Path, output: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if there is none.

    The folder itself is locked (flock): no lock file can be left behind, and the kernel releases
    the lock of a process that is killed. The block may remove the folder. On a file system without
    locks the folder is used unlocked.

    Args:
        folder: where the work in progress is kept.
        output: what is written, for the message.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be made.
    """
    try:
        descriptor = _lock(folder)
    except BlockingIOError as exc:
        raise ConfigError(
            f"another process is writing {output} (it holds the lock of {folder}); wait until it "
            "ends, or choose another output"
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f"{folder} cannot be written: {exc.strerror}; choose another output"
        ) from exc
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    """A descriptor of the folder, locked where it can be; BlockingIOError if another one is."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its process has just ended and removed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether the open folder is still the one at the path: it may have been removed since."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
