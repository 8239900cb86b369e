"""The CPU cores that this process may use: its affinity, less what its cgroups' quotas allow.

A container with a quota of half a core still sees every core of the machine. With a thread per
visible core the threads use up each period's quota (usually 100 ms) and then all wait for the next.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mod_edge.native.mountinfo import mounts

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CpuCores:
    """The limits on this process.

    Attributes:
        in_affinity: cores that the scheduler may run it on.
        quota: CPU seconds per second that its cgroups may use; None if unlimited.
    """

    in_affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Cores that threads can keep busy."""
        if self.quota is None:
            return self.in_affinity
        return max(1, min(self.in_affinity, math.ceil(self.quota)))


def usable_cores() -> int:
    """Cores that the threads of this process can keep busy."""
    return cpu_cores().usable


def cpu_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> CpuCores:
    """The limits on this process; a file that cannot be read sets none.

    Args:
        proc: where procfs is mounted.
        cgroups: stands for `/sys/fs/cgroup`, below which cgroups are mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        in_affinity = len(os.sched_getaffinity(0))
    else:
        in_affinity = os.cpu_count() or 1
    quotas = (_quota(folder) for folder in _folders(proc, cgroups))
    return CpuCores(in_affinity, min((each for each in quotas if each is not None), default=None))


def _folders(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's cgroups and of their ancestors, as far as they are mounted.

    An ancestor's quota holds for all groups in it. A mount may show a part of the hierarchy only:
    its root is a path in the hierarchy, like the group's. A group elsewhere, such as "/../.." seen
    from a cgroup namespace, has no folder: the mount point then is the container's group.
    """
    groups = _groups(proc)
    for is_v2, root, point in _mounts(proc, cgroups):
        for group in groups[is_v2]:
            inner = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
            if ".." in inner.parts:
                inner = PurePosixPath()
            for part in (inner, *inner.parents):
                yield point / part


def _groups(proc: Path) -> dict[bool, list[PurePosixPath]]:
    """Paths of this process's cgroups that limit CPU time: of cgroup v1 (False), of v2 (True)."""
    groups: dict[bool, list[PurePosixPath]] = {False: [], True: []}
    for line in _read(proc / "self" / "cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_v2 = hierarchy == "0"
        if is_v2 or "cpu" in controllers.split(","):
            groups[is_v2].append(PurePosixPath(path))
    return groups


def _mounts(proc: Path, cgroups: Path) -> Iterator[tuple[bool, PurePosixPath, Path]]:
    """(whether cgroup v2, root in its hierarchy, mount point) of every mount with CPU quotas."""
    for mount in mounts(proc / "self" / "mountinfo"):
        is_v2 = mount.file_system == "cgroup2"
        has_quotas = is_v2 or (mount.file_system == "cgroup" and "cpu" in mount.options)
        if has_quotas and mount.point.is_relative_to(CGROUPS):
            yield is_v2, mount.root, cgroups / mount.point.relative_to(CGROUPS)


def _quota(folder: Path) -> float | None:
    """A group's own quota in cores; None if it has none."""
    used, period = (
        *_read(folder / "cpu.max").split(),  # v2: "50000 100000", "max 100000"
        *_read(folder / "cpu.cfs_quota_us").split(),  # v1: 50000, -1
        *_read(folder / "cpu.cfs_period_us").split(),
        *("", ""),
    )[:2]
    if not (used.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(used) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
