"""`mod-edge build` on the screen."""

from mod_edge.console import err, out, printable, si
from mod_edge.export.engine import BuildReport


def print_build(report: BuildReport) -> None:
    """Print what was built, where it lies and what it is for; warnings on stderr."""
    for graph in report.graphs:
        for warning in graph.warnings:
            err.print("warning:", style="yellow", end=" ")
            err.print(printable(f"{graph.name}: {warning}"))
    capability = report.settings.compute_capability
    out.print(
        printable(
            f"{report.num_built} built, {report.num_fresh} fresh in {report.seconds:.1f} s: "
            f"{report.folder}, {si(report.size_bytes, 'B')} for compute capability "
            f"{capability[:-1]}.{capability[-1]} by {report.compiler}, "
            f"peak memory {si(report.peak_memory_bytes, 'B')}"
        )
    )
