"""The mounts of this process's file systems, as the kernel lists them: proc_pid_mountinfo(5)."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Mount:
    """One mount.

    Attributes:
        root: the folder of the file system that is mounted, as a path in it.
        point: where it is mounted.
        file_system: its type, such as cgroup2.
        options: of the file system, such as ("rw", "cpu").
    """

    root: PurePosixPath
    point: PurePosixPath
    file_system: str
    options: tuple[str, ...]


def mounts(file: Path) -> list[Mount]:
    """The mounts in a mountinfo file; empty without such a file."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    return [_mount(line) for line in lines if len(line.partition(b" - ")[0].split()) >= 5]


def _mount(line: bytes) -> Mount:
    place, _, device = line.partition(b" - ")
    root, point = (PurePosixPath(os.fsdecode(_unescaped(each))) for each in place.split()[3:5])
    fields = os.fsdecode(device).split() or [""]
    return Mount(root, point, fields[0], tuple(fields[-1].split(",")))


def _unescaped(field: bytes) -> bytes:
    """The field with its octal escapes, of spaces for example, replaced."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
