"""Progress where there is no terminal for a bar."""

from types import SimpleNamespace

from mod_edge.commands import console


def test_a_line_for_each_part_and_for_a_long_one_every_so_often(monkeypatch, capsys):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: now.s)
    with console.progress("train") as show:
        for done in range(6):
            show("features" if done < 5 else "step 1", done, 10)
            now.s += console.SECONDS_A_LINE / 2
    assert capsys.readouterr().err.splitlines() == [
        "train: features (0%)",
        "train: features (20%)",
        "train: features (40%)",
        "train: step 1 (50%)",
    ]
