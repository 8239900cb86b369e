"""`python -m benchmarks.peers`: measures peers beside this runtime, for docs/performance.md.

`make bench` runs it. Environments, models and measurements are kept in build/peers, or in the
folder that MOD_EDGE_PEERS names. An interrupted run continues with the steps that are missing;
delete `measurements` in that folder to measure again. Linux only.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures import ROOT, run_mod_edge
from benchmarks.peers.builds import TEXT, BuildError, Builds
from benchmarks.peers.contenders import CONTENDERS, OURS, Contender
from benchmarks.peers.interleaving import STEPS, measure_step
from benchmarks.peers.measurements import ContenderFacts, Measurements
from benchmarks.peers.report import write_first_page, write_page
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.peers.workers.line_protocol import THREADS
from mod_edge.commands.console import err, out, reports_errors
from mod_edge.errors import ConfigError, ModEdgeError

PAGE = ROOT / "docs" / "performance.md"
FIRST_PAGE = ROOT / "README.md"
OWN_WINDOW = 4096
INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@reports_errors
def main(
    folder: Annotated[
        Path,
        typer.Option(envvar="MOD_EDGE_PEERS", help="Environments, models and measurements."),
    ] = ROOT / "build" / "peers",
) -> None:
    """Make what is missing, measure what is missing and write the page."""
    take_cores(THREADS)
    builds = Builds(folder.resolve())
    commands: dict[str, list[str | Path]] = {}
    models: dict[str, str] = {}
    failed: dict[str, str] = {}
    for contender in CONTENDERS:
        try:
            model = builds.model(contender.model)
            commands[contender.key] = worker_command(builds, contender, model)
            models[contender.key] = model.name
        except BuildError as exc:
            failed[contender.key] = str(exc)
    if OURS in failed:
        raise ModEdgeError(f"{OURS}, with which others are compared, {failed[OURS]}")
    measurements = Measurements(folder / "measurements", models)
    if measurements.missing(STEPS):
        failed |= measure(builds, commands, measurements)
    own_bench = measurements.own_bench(lambda: run_own_bench(Path(commands[OURS][3])))
    write_page(PAGE, TEXT, measurements, STEPS, failed, own_bench)
    write_first_page(FIRST_PAGE, measurements, STEPS)
    out.print(f"wrote {PAGE.relative_to(ROOT)} and the table of {FIRST_PAGE.relative_to(ROOT)}")


def run_own_bench(bundle: Path) -> str:
    """What `mod-edge bench` prints for a bundle, by itself on the machine."""
    printed = run_mod_edge("bench", bundle, "--window", OWN_WINDOW)
    return printed.replace(str(bundle), bundle.name)  # the page names no folder of this machine


def take_cores(count: int) -> None:
    """Keep this process and its children on so many cores: more would not be the same machine.

    Raises:
        ConfigError: it has fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise ConfigError(f"got {len(cores)} usable cores, wanted {count}; free one for this run")
    os.sched_setaffinity(0, cores[:count])


def worker_command(builds: Builds, contender: Contender, model: Path) -> list[str | Path]:
    """The command that starts a contender's worker; its environment is made if it is missing."""
    module = f"benchmarks.peers.workers.{contender.worker}"
    return [builds.python(contender.environment), "-m", module, model, *contender.options]


def measure(
    builds: Builds, commands: Mapping[str, list[str | Path]], measurements: Measurements
) -> dict[str, str]:
    """Measure what is missing, with all contenders loaded; why some failed, by contender."""
    workers: dict[str, Worker] = {}
    failed: dict[str, str] = {}
    variables = {INDUCTOR_CACHE: str(builds.models / "inductor")}
    with ExitStack() as stack:
        for key, command in commands.items():
            err.print(f"loading {key}")
            try:
                worker = Worker(command, builds.logs / f"run-{key}.txt", variables, ROOT)
            except WorkerError as exc:
                failed[key] = str(exc)
                continue
            workers[key] = stack.enter_context(worker)
        for step in measurements.missing(STEPS):
            err.print(f"measuring {step.tokens} tokens with a past of {step.past}")
            found = measure_step(workers, step)
            for key in found.failed:
                del workers[key]
            failed |= found.failed
            facts = {key: facts_of(each, Path(commands[key][3])) for key, each in workers.items()}
            measurements.add_facts(date.today(), facts)
            measurements.add(step, found)
    return failed


def facts_of(worker: Worker, model: Path) -> ContenderFacts:
    """What is known about a contender that has loaded this model."""
    memory = worker.memory()
    return ContenderFacts(
        versions=worker.versions,
        load_s=worker.load_s,
        size_bytes=size_bytes(model),
        resident_bytes=memory.resident,
        anonymous_bytes=memory.anonymous,
    )


def size_bytes(model: Path) -> int:
    """Size on disk of a model: a file, or a folder."""
    files = model.rglob("*") if model.is_dir() else (model,)
    return sum(path.stat().st_size for path in files if path.is_file())


if __name__ == "__main__":
    typer.run(main)
