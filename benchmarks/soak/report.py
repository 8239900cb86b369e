"""The figures of a soak as a Markdown table, and where they are in the page."""

import re
from datetime import date
from pathlib import Path

from benchmarks.figures import machine_name, shipped_fingerprint
from benchmarks.markdown import table_head
from benchmarks.soak.judge import Figures, Span
from mod_edge.bundle.staging import write_whole
from mod_edge.errors import ModEdgeError

MARKED = re.compile(
    r"<!-- soak: checkpoint (?P<fingerprint>\w*) -->\n.*?<!-- end of soak -->\n", re.DOTALL
)


def figures_table(figures: Figures) -> str:
    """The figures, one a row, and the steps at both ends below them."""
    hours, minutes = divmod(round(figures.wall_s / 60), 60)
    time_taken = f"{hours} h {minutes} min" if hours else f"{minutes} min"
    days = figures.num_frames / 2 / 86400
    rows = (
        ("frames watched", f"{figures.num_frames:,} ({days:.2f} days at 2 frames/s)"),
        ("time taken", f"{time_taken}, {figures.num_frames / figures.wall_s:.0f} frames/s"),
        ("frames of the camera dropped meanwhile", f"{figures.num_dropped:,}"),
        ("replies", f"{figures.num_replies:,}"),
        ("rolls of the cache", f"{figures.num_rolls:,}"),
        (
            f"growth of memory after the first {figures.span_frames:,} frames",
            f"{figures.bytes_per_frame:.1f} bytes per frame",
        ),
        ("anonymous memory at the end", f"{figures.memory_bytes / 1e6:.0f} MB"),
        ("longest time between two frames", f"{figures.longest_gap_s:.2f} s"),
    )
    table = table_head("", "") + "".join(f"| {name} | {value} |\n" for name, value in rows)
    steps = (
        _step_row(f"first {figures.span_frames:,}", figures.first),
        _step_row(f"last {figures.span_frames:,}", figures.last),
    )
    columns = ("frames", "step, p50", "step, p99", "CPU time per frame")
    return f"{table}\n{table_head(*columns)}{''.join(steps)}"


def write_page(page: Path, figures: Figures) -> None:
    """Write the figures of the bundled model between the page's markers.

    Raises:
        ModEdgeError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    if not MARKED.search(text):
        raise ModEdgeError(f"{page} has no line `<!-- soak: checkpoint ... -->` to write after")
    block = (
        f"<!-- soak: checkpoint {shipped_fingerprint()} -->\n"
        f"{date.today().isoformat()}, {machine_name()}, one thread.\n\n"
        f"{figures_table(figures)}<!-- end of soak -->\n"
    )
    write_whole(page, MARKED.sub(lambda _: block, text).encode())


def _step_row(name: str, span: Span) -> str:
    return f"| {name} | {span.p50_ms:.2f} ms | {span.p99_ms:.2f} ms | {span.cpu_ms:.2f} ms |\n"
