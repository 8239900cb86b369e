"""`python -m benchmarks.two_streams BUNDLE`: two streams in one process beside two processes.

All ways watch the same synthetic videos and take turns. Two processes have the weights twice and
compute at the same time, with all threads each, which is the default, or with half of them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.markdown import table_head
from mod_edge.bench.memory import memory_now
from mod_edge.commands.console import out, reports_errors
from mod_edge.errors import BackendError
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.native.onnx_session import set_num_threads
from mod_edge.runtime import FrameEvent, Query, open_streams
from mod_edge.verification.sample_video import SampleVideo

QUERY = "Please narrate the video in real time."
FPS = 2.0
NUM_STREAMS = 2
MAX_NEW_TOKENS = 20


@dataclass(frozen=True)
class ProcessRun:
    """What one process did.

    Attributes:
        seconds: from the signal to start to the last event.
        anonymous_bytes: when a stream had its last frame; None where the system does not report it.
    """

    seconds: float
    anonymous_bytes: int | None


@dataclass(frozen=True)
class Setup:
    """A way to run the streams: so many processes, with so many threads each."""

    name: str
    num_processes: int
    num_threads: int


@dataclass(frozen=True)
class SetupRun:
    """What all processes of a setup did; the time is that of the slowest, the memory a sum."""

    fps: float
    anonymous_bytes: int | None


def setups(num_cores: int) -> list[Setup]:
    """The ways to compare."""
    return [
        Setup("one process", 1, num_cores),
        Setup("two processes, all threads each", NUM_STREAMS, num_cores),
        Setup("two processes, half of the threads each", NUM_STREAMS, max(1, num_cores // 2)),
    ]


def watch(bundle: Path, num_streams: int, num_frames: int, num_threads: int) -> None:
    """Load the bundle, wait for a line on stdin, run the streams and write a `ProcessRun`."""
    set_num_threads(num_threads)
    with open_streams(bundle, max_streams=num_streams, max_new_tokens=MAX_NEW_TOKENS) as streams:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        started = time.perf_counter()
        for number in range(num_streams):
            streams.add(str(number), SampleVideo(FPS, num_frames), [Query(QUERY)])
        anonymous = None
        for _, event in streams.events():
            is_last = isinstance(event, FrameEvent) and event.index == num_frames - 1
            if is_last and anonymous is None:  # while all streams have their caches
                anonymous = memory_now().anonymous
        run = ProcessRun(time.perf_counter() - started, anonymous)
    json.dump(asdict(run), sys.stdout)


def run_setup(setup: Setup, bundle: Path, num_frames: int) -> SetupRun:
    """Start the processes, let all of them load, and run them at the same time."""
    num_streams = NUM_STREAMS // setup.num_processes
    options = ["--frames", num_frames, "--streams", num_streams, "--threads", setup.num_threads]
    command = [sys.executable, "-m", "benchmarks.two_streams", bundle, *options]
    with ExitStack() as release:
        processes = [
            release.enter_context(
                subprocess.Popen(
                    list(map(str, command)),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=Path(__file__).resolve().parent.parent,
                )
            )
            for _ in range(setup.num_processes)
        ]
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BackendError(f"a process could not load {bundle}; its error is above")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("start\n")
            process.stdin.flush()
        runs = [ProcessRun(**json.loads(process.communicate()[0])) for process in processes]
    return merged(runs, NUM_STREAMS * num_frames)


def merged(runs: Sequence[ProcessRun], num_frames: int) -> SetupRun:
    """The run of a setup, whose processes watched `num_frames` frames altogether."""
    memory = [run.anonymous_bytes for run in runs if run.anonymous_bytes is not None]
    return SetupRun(
        num_frames / max(run.seconds for run in runs),
        sum(memory) if len(memory) == len(runs) else None,
    )


def table(runs: Mapping[Setup, Sequence[SetupRun]]) -> str:
    """Speed and memory of every setup, and both beside the first; medians of the rounds."""
    first = next(iter(runs.values()))
    rows = []
    for setup, ours in runs.items():
        faster = median(our.fps / their.fps for our, their in zip(ours, first, strict=True))
        memory, least = (_median_bytes(each) for each in (ours, first))
        cells = (
            setup.name,
            f"{median(each.fps for each in ours):.2f}",
            f"{faster:.2f}",
            "-" if memory is None else f"{memory / 1e6:,.0f}",
            "-" if memory is None or least is None else f"{memory / least:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    columns = ("two streams in", "frames/s", "of one process", "anonymous MB", "of one process")
    return table_head(*columns) + "".join(rows)


def _median_bytes(runs: Sequence[SetupRun]) -> float | None:
    known = [run.anonymous_bytes for run in runs if run.anonymous_bytes is not None]
    return median(known) if known else None


@reports_errors
def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle for target cpu.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames of each stream.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each setup.")] = 3,
    streams: Annotated[
        int | None, typer.Option(hidden=True, help="Run as one of the processes.")
    ] = None,
    threads: Annotated[int, typer.Option(hidden=True, help="Of that process.")] = 1,
) -> None:
    """Print speed and memory of two streams in one process and in two."""
    if streams is not None:
        watch(bundle, streams, frames, threads)
        return
    runs: dict[Setup, list[SetupRun]] = {setup: [] for setup in setups(usable_cores())}
    for _ in range(rounds):
        for setup, ours in runs.items():
            ours.append(run_setup(setup, bundle.resolve(), frames))
    out.print(table(runs), soft_wrap=True, markup=False)


if __name__ == "__main__":
    typer.run(main)
