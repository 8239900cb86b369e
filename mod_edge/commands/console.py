"""Output of the commands: results on stdout, progress and errors on stderr.

A terminal gets progress bars, colours and a live view, anything else plain lines. rich honours
NO_COLOR, and FORCE_COLOR for colours in plain lines.
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
from rich.table import Column

from mod_edge.bundle.disk_full import DISK_FULL, full_disk_line
from mod_edge.commands.standard_streams import leave_closed_terminal
from mod_edge.errors import ModEdgeError
from mod_edge.native.package_faults import explained_imports
from mod_edge.progress import OnStep
from mod_edge.stop_signals import stop_signals

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
SECONDS_PER_LINE = 20.0  # without a progress bar, progress is a line at most this often

# No markup, no emoji: a folder may be named "a[/b]" or ":car:".
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def reports_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a command: it prints a mod-edge error as one line and exits with 1, without a traceback.

    So does a package that cannot be imported, wherever the command imports it. What is wrong with
    the options themselves is typer's: it exits with 2, see `arguments.usage_errors`.

    SIGTERM and SIGHUP are handled like Ctrl-C, so that a stopped service and a command whose
    terminal is closed clean up too.
    """

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        handlers = {signal.SIGTERM: signal.default_int_handler, signal.SIGHUP: _hang_up}
        previous = {
            number: signal.signal(number, handlers[number])
            for number in stop_signals()
            if number in handlers
        }
        _escape_unencodable_characters()
        try:
            with explained_imports():
                return command(*args, **kwargs)
        except BrokenPipeError as exc:  # the reader, such as `head`, has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_ERROR) from exc
        except ModEdgeError as exc:
            print_error(str(exc))
            raise typer.Exit(EXIT_ERROR) from exc
        except OSError as exc:  # it names its file
            print_os_error(exc)
            raise typer.Exit(EXIT_ERROR) from exc
        except KeyboardInterrupt as exc:
            err.print(printable(str(exc)) or "interrupted; no incomplete files were left")
            raise typer.Exit(EXIT_INTERRUPTED) from exc
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    return run


def _hang_up(_number: int, _frame: object) -> None:
    """Interrupt once: the kernel and the shell may both send it, the second while we clean up."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    leave_closed_terminal()
    raise KeyboardInterrupt


def _escape_unencodable_characters() -> None:
    """On a terminal that is not UTF-8, print characters that it lacks as escape codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def can_redraw(console: Console) -> bool:
    """Whether it is a terminal with a cursor; FORCE_COLOR gives a pipe colours, but no cursor."""
    return console.file.isatty() and console.is_interactive


@contextmanager
def progress(title: str) -> Iterator[OnStep]:
    """Show the progress of a long command: yields the function to call at each step.

    Without a terminal it prints a line for the first step, then one every `SECONDS_PER_LINE`.
    """
    if not can_redraw(err):
        shown_s = -math.inf

        def line(name: str, done: float, total: float) -> None:
            nonlocal shown_s
            now_s = time.monotonic()
            if now_s - shown_s >= SECONDS_PER_LINE:
                shown_s = now_s
                err.print(f"{title}: {name} ({100 * done / total:.0f}%)")

        yield line
        return
    columns = (
        # Wrapped where the terminal is narrow: cut, it would lose digits of a loss.
        TextColumn("{task.description}", table_column=Column()),
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
    """Print one JSON document on one line of stdout, and flush it."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    styles: Sequence[str] | None = None,
) -> None:
    """Print a table with aligned columns, never truncated to the width of the terminal.

    Args:
        header: column titles.
        rows: cells of each row, one per column.
        left: indices of the left-aligned columns; the others are right-aligned.
        styles: rich style of each row; "" for none.
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    for cells, style in zip((header, *rows), ("bold", *(styles or [""] * len(rows))), strict=True):
        padded = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        out.print("  ".join(padded).rstrip(), style=style or None)


def print_warning(text: str) -> None:
    """Print a one-line warning on stderr."""
    err.print("warning:", style="yellow", end=" ")
    err.print(printable(text))


def print_error(text: str) -> None:
    """Print a one-line error on stderr."""
    err.print("error:", style="bold red", end=" ")
    err.print(printable(text))


def print_os_error(exc: OSError) -> None:
    """Print an error of the system on stderr, of a full disk with what to do."""
    print_error(full_disk_line(exc) if exc.errno in DISK_FULL else str(exc))


def print_pairs(rows: list[tuple[str, str]]) -> None:
    """Print one line per name, with the values aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        out.print(f"{name:<{width}}  {value}")


def printable(text: str) -> str:
    """`text` on one line, control characters replaced: a reply must not move the cursor.

    Bytes of a path that are not UTF-8 become escape codes.
    """
    text = text.encode(errors="backslashreplace").decode()
    return "".join(char if char.isprintable() else " " for char in text)


def si(number: float, unit: str) -> str:
    """The number with an SI prefix: 107934121984 FLOPs is "107.9 GFLOPs"."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            break
        number /= 1000
    digits = 0 if prefix == "" and float(number).is_integer() else 1
    return f"{number:.{digits}f} {prefix}{unit}"
