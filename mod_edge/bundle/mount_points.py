"""Mount points, which cannot be renamed: a container's volume, a disk."""

import os
from pathlib import Path

from mod_edge.native.mountinfo import mounts

MOUNTS_FILE = Path("/proc/self/mountinfo")


def has_mount_point(folder: Path) -> bool:
    """Whether `folder`, an absolute path without links, or a folder in it is a mount point."""
    # ismount() misses a folder that is mounted from the same disk, which the kernel's list shows.
    return os.path.ismount(folder) or any(
        mount.point.is_relative_to(folder) for mount in mounts(MOUNTS_FILE)
    )
