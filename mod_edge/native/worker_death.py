"""What ended a worker process, for errors about one that died."""

import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess


def death_of(workers: Iterable[BaseProcess]) -> str:
    """How the first of the dead `workers` ended, and what to do.

    When one process of a pool dies, the pool stops the others with SIGTERM: that is the last guess.
    """
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    return cause_of(min(codes, key=lambda code: code == -signal.SIGTERM, default=None))


def cause_of(exit_code: int | None) -> str:
    """The exit code of a process in words, None if unknown, and what to do."""
    if exit_code == -signal.SIGKILL:
        return (
            "SIGKILL, usually out of memory; free some, or give the machine or container more, and "
            "run again"
        )
    code = "no exit code" if exit_code is None else f"exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        is_named = -exit_code in set(signal.Signals)
        code = signal.Signals(-exit_code).name if is_named else f"signal {-exit_code}"
    return f"{code}; run again, and report a bug if it stays"
