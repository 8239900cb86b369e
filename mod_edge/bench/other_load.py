"""What other processes did while something was measured, from procfs."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
LEAST_CORES = 0.05  # a process that used less of a core is not named
NUM_NAMED = 3
# Of the line "cpu" in /proc/stat, see proc(5): user nice system idle iowait irq softirq steal.
NUM_TIMES, IDLE, IO_WAIT = 8, 3, 4
# Of /proc/PID/stat, after the name: utime and stime.
USER_TIME, SYSTEM_TIME = 11, 12


@dataclass(frozen=True)
class BusyProcess:
    """A process and the CPU cores that it kept busy, as a mean."""

    name: str
    cores: float


@dataclass(frozen=True)
class OtherLoad:
    """What others did; None where the system does not report it.

    Attributes:
        load_average: of the minute before, without this measurement.
        cores: kept busy by others while it ran, as a mean.
        processes: the busiest of them, the busiest first.
    """

    load_average: float | None
    cores: float | None
    processes: tuple[BusyProcess, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields, rounded."""
        return {
            "load_average": self.load_average,
            "cores": None if self.cores is None else round(self.cores, 2),
            "processes": [
                asdict(each) | {"cores": round(each.cores, 2)} for each in self.processes
            ],
        }


@dataclass(frozen=True)
class _Snapshot:
    """CPU seconds: of all processors together, and by process id."""

    time_s: float
    busy_s: float | None
    names: dict[int, str]
    seconds: dict[int, float]


class LoadWatch:
    """Watches the machine from its creation to `report`."""

    def __init__(self, proc: Path = PROC, clock: Callable[[], float] = time.monotonic) -> None:
        """Start watching.

        Args:
            proc: where procfs is mounted.
            clock: seconds from any start.
        """
        self._proc, self._clock = proc, clock
        self._load_average = _load_average(proc)
        self._start = self._snapshot()

    def report(self) -> OtherLoad:
        """What others did since this object was made."""
        first, last = self._start, self._snapshot()
        elapsed_s = max(last.time_s - first.time_s, 1e-9)
        used = {
            number: (seconds - first.seconds.get(number, 0.0)) / elapsed_s
            for number, seconds in last.seconds.items()
        }
        ours = used.pop(_own_id(self._proc), 0.0)
        named = sorted(used, key=lambda number: used[number], reverse=True)[:NUM_NAMED]
        cores = None
        if first.busy_s is not None and last.busy_s is not None:
            cores = max(0.0, (last.busy_s - first.busy_s) / elapsed_s - ours)
        processes = (
            BusyProcess(last.names[number], used[number])
            for number in named
            if used[number] >= LEAST_CORES
        )
        return OtherLoad(self._load_average, cores, tuple(processes))

    def _snapshot(self) -> _Snapshot:
        names, seconds = {}, {}
        for folder in self._proc.glob("[0-9]*"):
            used = process_cpu_s(folder)
            if used is not None:
                number = int(folder.name)
                names[number], seconds[number] = used
        return _Snapshot(self._clock(), busy_s(self._proc), names, seconds)


def process_cpu_s(process: Path) -> tuple[str, float] | None:
    """Name and CPU seconds of the process with this folder in procfs; None if it has ended."""
    head, _, tail = _read(process / "stat").rpartition(")")
    times = tail.split()
    if len(times) <= SYSTEM_TIME:
        return None
    ticks = int(times[USER_TIME]) + int(times[SYSTEM_TIME])
    return head.partition("(")[2], ticks / _ticks()


def busy_s(proc: Path = PROC) -> float | None:
    """CPU seconds that all processors spent on anything but waiting; None if unknown."""
    name, *times = _read(proc / "stat").partition("\n")[0].split() or [""]
    if name != "cpu" or len(times) < NUM_TIMES:
        return None
    counts = list(map(int, times[:NUM_TIMES]))
    return (sum(counts) - counts[IDLE] - counts[IO_WAIT]) / _ticks()


def _load_average(proc: Path) -> float | None:
    fields = _read(proc / "loadavg").split()
    return float(fields[0]) if fields else None


def _own_id(proc: Path) -> int:
    fields = _read(proc / "self" / "stat").split()
    return int(fields[0]) if fields else os.getpid()


def _ticks() -> int:
    """Clock ticks in a second of /proc's times."""
    return os.sysconf("SC_CLK_TCK")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has ended, or this is not Linux
        return ""
