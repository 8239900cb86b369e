"""The driver's side of the line protocol, and what a worker's process takes of the machine."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from signal import Signals
from typing import Any

from mod_edge.bench.memory import Memory, memory_of
from mod_edge.bench.other_load import process_cpu_s
from mod_edge.errors import ModEdgeError

PROC = Path("/proc")


class WorkerError(ModEdgeError):
    """A worker ended before it answered."""


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
        """Milliseconds of `rounds` steps of `tokens` after `past`, after an untimed one.

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
        used = process_cpu_s(PROC / str(self._process.pid))
        assert used is not None, "it runs until it is closed"
        return used[1]

    def memory(self) -> Memory:
        """Memory that the process takes now."""
        return memory_of(PROC / str(self._process.pid))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a request that an ended process has not read
                pipe.close()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(failure(self._process.wait(), self._log))
        answer: dict[str, Any] = json.loads(line)
        return answer


def failure(code: int, log: Path) -> str:
    """Why a process with this exit code failed, for the page: no folder of this machine is named.

    A signal, or the last line of its log that is not empty: of a traceback, the error's.
    """
    if code < 0:
        return f"ended by {Signals(-code).name} ({log.name})"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    fault = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"{fault} ({log.name})"
