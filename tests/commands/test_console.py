"""Progress without a terminal, and the signals that stop a command."""

import signal
from types import SimpleNamespace

import pytest
import typer

from mod_edge.commands import console


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


def test_progress_is_a_line_per_part_and_more_for_a_long_part(monkeypatch, capsys):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.s)
    with console.progress("train") as show:
        for done in range(6):
            show("features" if done < 5 else "step 1", done, 10)
            now.s += console.SECONDS_PER_LINE / 2
    assert capsys.readouterr().err.splitlines() == [
        "train: features (0%)",
        "train: features (20%)",
        "train: features (40%)",
        "train: step 1 (50%)",
    ]
