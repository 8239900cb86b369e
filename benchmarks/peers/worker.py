"""The driver's side of the line protocol, and what a worker's process takes of the machine."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mod_edge.errors import ModEdgeError

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class WorkerError(ModEdgeError):
    """A worker ended before it answered."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process in bytes: all that is resident, and the part that no file backs."""

    resident: int
    anonymous: int


class Worker(AbstractContextManager["Worker"]):
    """A contender's process with its model loaded.

    Attributes:
        load_s: seconds that loading the model took, imports excluded.
        versions: of the packages that compute, by name.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str], folder: Path
    ) -> None:
        """Start the process and wait until its model is loaded.

        Args:
            command: the worker's.
            log: gets its stderr.
            environment: variables beside those of this process.
            folder: its working folder.

        Raises:
            WorkerError: it ended instead.
        """
        self._log = log
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | environment,
                cwd=folder,
            )
        try:
            hello = self._answer()
        except BaseException:
            self.close()
            raise
        self.load_s: float = hello["load_s"]
        self.versions: dict[str, str] = hello["versions"]

    def step_times_ms(self, past: int, tokens: int, rounds: int) -> list[float]:
        """Milliseconds of `rounds` steps of `tokens` behind `past`, after an untimed one.

        Raises:
            WorkerError: it ended instead.
        """
        assert self._process.stdin is not None
        request = json.dumps({"past": past, "tokens": tokens, "rounds": rounds})
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the missing answer says why
        times_ms: list[float] = self._answer()["ms"]
        return times_ms

    def cpu_s(self) -> float:
        """CPU seconds that the process has used."""
        fields = (PROC / str(self._process.pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S  # utime, stime

    def memory(self) -> Memory:
        """Memory that the process takes now."""
        rollup = (PROC / str(self._process.pid) / "smaps_rollup").read_text().splitlines()
        kib = {line.split()[0]: int(line.split()[1]) for line in rollup[1:]}
        return Memory(1024 * kib["Rss:"], 1024 * kib["Anonymous:"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{last_fault(self._log)} ({self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer


def last_fault(log: Path) -> str:
    """The last line of a log that is not empty: of a traceback, the error's."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
