"""Memory of a process, from procfs."""

from dataclasses import asdict, dataclass
from pathlib import Path

from mod_edge.native.procfs import sizes_in

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
    status = sizes_in(process / "status")
    anonymous = sizes_in(process / "smaps_rollup").get("Anonymous")
    return Memory(anonymous, status.get("VmRSS"), status.get("VmHWM"))
