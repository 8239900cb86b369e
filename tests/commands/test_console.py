"""Progress without a terminal."""

from types import SimpleNamespace

from mod_edge.commands import console


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
