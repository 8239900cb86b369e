"""What commands print: results on stdout, progress and errors on stderr.

On a terminal: bars, colours and a live view. Elsewhere: plain lines. NO_COLOR is kept (by rich).
"""

import functools
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mod_edge.errors import ModEdgeError
from mod_edge.progress import OnStep

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # what shells give a process that Ctrl-C ended
SECONDS_A_LINE = 20.0  # how long a part goes on without another line, where there is no bar

# Neither markup nor emoji: a folder may be called "a[/b]" or ":car:".
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def reports_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The command with our errors printed as one line and exit code 1, without a traceback.

    SIGTERM ends it as Ctrl-C does: a service is stopped so, and it too must clean up.
    """

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        _show_what_cannot_be_encoded()
        try:
            return command(*args, **kwargs)
        except BrokenPipeError as exc:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_ERROR) from exc
        # An OSError is a full disk or a file that may not be read, and names the file.
        except (ModEdgeError, OSError) as exc:
            print_error(str(exc))
            raise typer.Exit(EXIT_ERROR) from exc
        except KeyboardInterrupt as exc:
            err.print(printable(str(exc)) or "stopped; nothing was left half-made")
            raise typer.Exit(EXIT_INTERRUPTED) from exc
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run


def _show_what_cannot_be_encoded() -> None:
    """Let a terminal that is not UTF-8 show a reply's foreign characters by their codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def progress(title: str) -> Iterator[OnStep]:
    """A function (name of the part, done, of total) that shows how far a long command is.

    Where there is no terminal for a bar, a line for each part, and for a long one every so often.
    """
    if not err.is_terminal:
        shown, shown_s = "", -math.inf

        def line(name: str, done: float, total: float) -> None:
            nonlocal shown, shown_s
            now_s = time.monotonic()
            if name != shown or now_s - shown_s >= SECONDS_A_LINE:
                shown, shown_s = name, now_s
                err.print(f"{title}: {name} ({100 * done / total:.0f}%)")

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title)
        yield lambda name, done, total: bar.update(
            task, description=f"{title}: {name}", completed=done, total=total
        )


def print_json(document: dict[str, Any]) -> None:
    """One JSON document or line on stdout, flushed, so that a reader sees it at once."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    styles: Sequence[str] | None = None,
) -> None:
    """Lines of aligned cells, never cut off: a log has no width to fit into.

    Args:
        header: titles of the columns.
        rows: cells, as many as there are titles.
        left: numbers of the columns that are aligned left.
        styles: of each row; none where None or "".
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    for cells, style in zip((header, *rows), ("bold", *(styles or [""] * len(rows))), strict=True):
        padded = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        out.print("  ".join(padded).rstrip(), style=style or None)


def print_warning(text: str) -> None:
    """One line on stderr that nothing failed for."""
    err.print("warning:", style="yellow", end=" ")
    err.print(printable(text))


def print_error(text: str) -> None:
    """One line on stderr for what ended a command."""
    err.print("error:", style="bold red", end=" ")
    err.print(printable(text))


def print_pairs(rows: list[tuple[str, str]]) -> None:
    """Names and values as lines, the values below one another."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(f"{name:<{width}}  {value}")


def printable(text: str) -> str:
    """`text` on one line without control characters: a model's words must not move the cursor."""
    return "".join(char if char.isprintable() else " " for char in text)


def si(number: float, unit: str) -> str:
    """A number with k, M, G or T: 107934121984 FLOPs is "107.9 GFLOPs"."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            break
        number /= 1000
    digits = 0 if prefix == "" and float(number).is_integer() else 1
    return f"{number:.{digits}f} {prefix}{unit}"
