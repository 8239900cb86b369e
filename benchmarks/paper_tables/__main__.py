"""`python -m benchmarks.paper_tables`: carries out missing runs and writes the page of results.

Ctrl-C stops it at any time; the same command continues.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper_tables.arms import ARMS, PLAN, Run
from benchmarks.paper_tables.report import STEP_COST_FILE, write_page
from benchmarks.paper_tables.results import write_document
from benchmarks.paper_tables.runs import Comparison, carry_out_all
from benchmarks.paper_tables.settings import STANDARD
from benchmarks.paper_tables.step_cost import measure_step_cost
from mod_edge.commands.console import out, progress, reports_errors
from mod_edge.errors import ConfigError
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.progress import OnStep
from mod_edge.training.plot import require_matplotlib


@reports_errors
def main(
    data: Annotated[Path, typer.Option(help="Data set: JSONL files and their videos.")],
    base: Annotated[Path, typer.Option(help="Checkpoint that every run starts from.")],
    runs: Annotated[Path, typer.Option(help="Folder of results, one JSON file per run.")],
    write: Annotated[Path, typer.Option(help="Page of results to write.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints.")] = Path("build/comparison"),
    only: Annotated[list[str] | None, typer.Option(help="Run only this arm; repeatable.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Start no run that would end after this time.")
    ] = None,
) -> None:
    """Carry out missing runs and write the page of results."""
    require_matplotlib()
    chosen = _chosen(only)
    comparison = Comparison(data, Checkpoint(base), work, runs, STANDARD)
    try:
        with progress("results") as show:
            if only is None:
                _measure_step_cost(comparison, show)
            left = carry_out_all(
                comparison,
                chosen,
                max_minutes=max_minutes,
                on_step=show,
                on_result=lambda _run: write_page(runs, write),
            )
    except KeyboardInterrupt as exc:
        raise KeyboardInterrupt("stopped; the same command continues") from exc
    write_page(runs, write)
    names = ", ".join(run.name for run in left)
    out.print(f"wrote {write}" + (f"; missing runs: {names}" if left else ""))


def _chosen(only: list[str] | None) -> list[Run]:
    unknown = sorted({*(only or ())} - {*ARMS})
    if unknown:
        raise ConfigError(f"unknown arm {', '.join(unknown)}; known are {', '.join(ARMS)}")
    return [run for run in PLAN if only is None or run.arm.name in only]


def _measure_step_cost(comparison: Comparison, on_step: OnStep) -> None:
    path = comparison.results / STEP_COST_FILE
    if not path.exists():
        write_document(path, measure_step_cost(comparison.base.config, on_step=on_step))


if __name__ == "__main__":
    typer.run(main)
