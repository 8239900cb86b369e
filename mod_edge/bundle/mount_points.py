"""Mount points, which cannot be renamed: a container's volume, a disk."""

import os
import re
from pathlib import Path

MOUNTS_FILE = Path("/proc/self/mountinfo")


def has_mount_point(folder: Path) -> bool:
    """Whether `folder`, an absolute path without links, or a folder in it is a mount point."""
    # ismount() misses a folder that is mounted from the same disk, which the kernel's list shows.
    return os.path.ismount(folder) or any(
        point.is_relative_to(folder) for point in _mount_points(MOUNTS_FILE)
    )


def _mount_points(file: Path) -> list[Path]:
    """The fifth field of every line (proc_pid_mountinfo(5)); empty without such a file."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    return [Path(os.fsdecode(_unescaped(line.split()[4]))) for line in lines]


def _unescaped(field: bytes) -> bytes:
    """The field with its octal escapes, of spaces for example, replaced."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
