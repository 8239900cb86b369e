"""Memory of a process, from procfs."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Bytes of a process; None where the system does not report them.

    Attributes:
        anonymous: not backed by a file, so that the system cannot drop it: weights, caches, heap.
        resident: all pages in memory, mapped files included.
        peak: the largest resident size so far.
    """

    anonymous: int | None
    resident: int | None
    peak: int | None

    def to_json(self) -> dict[str, int | None]:
        """The fields, with their unit."""
        return {f"{name}_bytes": value for name, value in asdict(self).items()}


def memory_now(proc: Path = PROC) -> Memory:
    """The memory of this process; `proc` is where procfs is mounted."""
    return memory_of(proc / "self")


def memory_of(process: Path) -> Memory:
    """The memory of the process with this folder in procfs."""
    return Memory(
        _bytes(process / "smaps_rollup", "Anonymous"),
        _bytes(process / "status", "VmRSS"),
        _bytes(process / "status", "VmHWM"),
    )


def _bytes(path: Path, name: str) -> int | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else None
