"""Progress, tables on terminals of any width and in pipes, and the signals that stop a command."""

import io
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console

from mod_edge.commands import console
from tests.commands.mod_edge_command import invoke


@pytest.fixture
def _hang_up_is_not_ignored():
    """As without nohup; a test may set another handler."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hang_up_is_not_ignored")
def test_a_second_hang_up_does_not_stop_the_cleaning_up(capsys):
    cleaned = []

    @console.reports_errors
    def command():
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == console.EXIT_INTERRUPTED
    assert cleaned
    assert capsys.readouterr().err == "interrupted; no incomplete files were left\n"


@pytest.mark.usefixtures("_hang_up_is_not_ignored")
def test_an_ignored_hang_up_does_not_stop_a_command():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    console.reports_errors(lambda: signal.raise_signal(signal.SIGHUP))()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("_hang_up_is_not_ignored")
def test_a_command_leaves_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    console.reports_errors(lambda: None)()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_is_a_line_at_first_and_then_one_in_twenty_seconds(monkeypatch, capsys):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.s)
    with console.progress("train") as show:
        for done in range(6):
            show(f"clip {done}", done, 10)
            now.s += console.SECONDS_PER_LINE / 2
    assert capsys.readouterr().err.splitlines() == [
        "train: clip 0 (0%)",
        "train: clip 2 (20%)",
        "train: clip 4 (40%)",
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "model"), "model cannot be written: No space left"),
        (OSError(28, "No space left on device"), "the output cannot be written: No space left"),
        (OSError(13, "Permission denied", "model"), "[Errno 13] Permission denied: 'model'"),
    ],
    ids=["file", "no file", "permission"],
)
def test_a_full_disk_is_one_line_that_says_what_to_do(capsys, error, line):
    @console.reports_errors
    def command():
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == console.EXIT_ERROR
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {line}")
    assert printed.count("\n") == 1
    assert ("free some space, or write to another disk" in printed) == (error.errno == 28)


# ---- terminals, pipes and widths ----


class Terminal(io.StringIO):
    """Takes what is printed, and says that it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("file", "environment", "can_redraw"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"FORCE_COLOR": "1"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "TERM": "xterm-256color"}, False),
    ],
)
def test_only_a_terminal_is_redrawn(file, environment, can_redraw):
    assert console.can_redraw(Console(file=file, _environ=environment)) is can_redraw


def test_forced_colours_in_a_pipe_move_no_cursor(monkeypatch):
    file = io.StringIO()
    environment = {"FORCE_COLOR": "1"}
    forced = Console(file=file, soft_wrap=True, highlight=False, _environ=environment)
    monkeypatch.setattr(console, "err", forced)
    with console.progress("eval") as show:
        show("clip 1 of 2", 0, 2)
    console.print_error("no such clip")
    assert file.getvalue().startswith("eval: clip 1 of 2 (0%)\n\x1b[1;31merror:\x1b[0m")
    assert set(re.findall(r"\x1b\[[0-9;?]*(.)", file.getvalue())) == {"m"}  # colours alone


WIDTHS = [40, 60, 72, 79, 80, 120]
ROWS = [("a row with a long name, which fills it", "0.512345", "1,234,567 B", "+0.12 s")] * 3


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
@pytest.mark.parametrize("columns", WIDTHS)
def test_a_table_is_never_cut_or_wrapped(monkeypatch, file, columns):
    narrow = Console(
        file=file(), soft_wrap=True, highlight=False, _environ={"COLUMNS": str(columns)}
    )
    monkeypatch.setattr(console, "out", narrow)
    console.print_table(("", "F1", "size", "error"), ROWS)
    console.print_pairs([("machine", "x" * 150), ("memory", "1.5 GB of 2.0 GB")])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", narrow.file.getvalue()).splitlines()
    assert len(lines) == 1 + len(ROWS) + 2
    for line in lines[1:4]:
        assert line == "  ".join(ROWS[0])
    assert lines[4] == f"machine  {'x' * 150}"


def test_tables_are_printed_in_one_place():
    folder = Path(console.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "rich.table" in path.read_text()] == [
        "console.py"
    ]


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_progress_bar_never_cuts_numbers(monkeypatch, columns):
    environment = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
    terminal = Console(file=Terminal(), soft_wrap=True, color_system=None, _environ=environment)
    monkeypatch.setattr(console, "err", terminal)
    with console.progress("train") as show:
        show("step 1200, loss 0.512 stream 0.301 motion 0.044, 12.34 steps/s", 55, 100)
    drawn = terminal.file.getvalue()
    assert "\u2026" not in drawn
    for number in ("1200,", "0.512", "0.301", "0.044,", "12.34", "55%"):
        assert re.search(rf"(^|\s){re.escape(number)}\s", drawn), drawn


@pytest.mark.parametrize("columns", [40, 72])
@pytest.mark.parametrize(
    "arguments", [("inspect", "tiny"), ("targets",), ("doctor",)], ids=lambda each: each[0]
)
def test_no_command_cuts_its_table(monkeypatch, arguments, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = invoke(*arguments)
    assert result.exit_code in (0, 1)
    assert "\u2026" not in result.stdout
    if arguments[0] != "doctor":  # the free memory changes
        monkeypatch.setenv("COLUMNS", "500")
        assert invoke(*arguments).stdout == result.stdout
