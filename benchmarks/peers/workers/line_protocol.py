"""The worker's side of the line protocol: one JSON document per line on stdin and stdout.

    worker  {"load_s": 1.9, "versions": {"openvino": "2026.4.1"}}   once, as soon as it is loaded
    driver  {"past": 4000, "tokens": 11, "rounds": 2}
    worker  {"ms": [240.1, 238.7]}

A request fills the cache to `past` tokens if it is not, runs one step of `tokens` untimed and then
`rounds` timed ones, each after exactly `past` tokens. A worker that fails ends with a traceback on
stderr. Standard library only, and Python 3.10: it runs in every contender's environment.
"""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version

THREADS = 2
MAX_PAST = 4000
MAX_STEP = 55
NUM_POSITIONS = MAX_PAST + MAX_STEP
"""Positions that a cache must have room for."""
PREFILL_STEP = 500


class Steps(ABC):
    """A loaded model with one cache."""

    @abstractmethod
    def fill(self, past: int) -> None:
        """Make the cache hold `past` tokens; their values do not matter."""

    @abstractmethod
    def step(self, tokens: int) -> None:
        """Run a step of `tokens` through decoder and head, and wait until its logits are there."""

    @abstractmethod
    def cut(self) -> None:
        """Bring the cache back to what `fill` made."""


def serve(load: Callable[[], Steps], packages: tuple[str, ...]) -> None:
    """Load a model and answer requests until stdin ends.

    Args:
        load: loads it; the time that this takes is reported.
        packages: installed packages whose versions are reported.
    """
    # Libraries print to stdout: keep it for the protocol and show their lines on stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(document: object) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    started = time.perf_counter()
    steps = load()
    load_s = time.perf_counter() - started
    answer({"load_s": load_s, "versions": {name: version(name) for name in packages}})
    filled = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["past"] != filled:
            filled = request["past"]
            steps.fill(filled)
        answer({"ms": timed_steps(steps, request["tokens"], request["rounds"])})


def timed_steps(steps: Steps, tokens: int, rounds: int) -> list[float]:
    """Milliseconds of `rounds` steps after an untimed one.

    The untimed step lets the threads of other contenders fall asleep, and buffers that depend on
    the step's shape be made.
    """
    times_ms = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        steps.step(tokens)
        elapsed_ms = 1000 * (time.perf_counter() - started)
        steps.cut()
        if number:
            times_ms.append(elapsed_ms)
    return times_ms
