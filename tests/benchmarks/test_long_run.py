"""The table of window policies counts the captions of all scenes; its page has a place for it."""

from benchmarks import figures, long_run
from benchmarks.endless_scene import DURATION_S, Narration
from mod_edge.data.dialogue import Dialogue, Turn
from mod_edge.evaluation.free_running import Account, Said

FPS = 2.0
STOPS = "The red ball stops."


def narration(*, said_s, num_rolls=0):
    """A scene with a caption due in minutes 1, 10 and 60, and one question."""
    due_s = (30, 570, 3590)
    captions = [Turn(round(FPS * each), 1, None, STOPS, "stops", ("red", "ball")) for each in due_s]
    question = Turn(round(FPS * 40), 1, "Which?", "Red.")
    turns = tuple(sorted([*captions, question], key=lambda turn: turn.last_frame))
    account = Account(tuple(Said(each, STOPS) for each in said_s), ("Red.",), num_rolls)
    return Narration(Dialogue(turns, round(DURATION_S * FPS)), account, FPS)


def test_a_cell_counts_all_scenes_and_names_the_worst_and_the_best():
    good = narration(said_s=(30.0, 570.0, 3590.5), num_rolls=4)
    poor = narration(said_s=(30.0, 300.0))
    introduction, _, *table = long_run.policies_table({"rolling": [good, poor]}).splitlines()
    assert introduction == (
        "F1 over 2 one-hour scenes with a window of 20 s; in brackets, the F1 of the worst and of "
        "the best single scene. Captions due in all scenes: 2 in minute 1, 2 in minute 10, 2 in "
        "minute 60, 6 in the hour."
    )
    assert table == [
        "| policy | minute 1 (0 to 2) | minute 10 (8 to 12) | minute 60 (50 to 60) | "
        "the hour (0 to 60) | moment F1 | answers | rolls |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| rolling | 1.000 (1.00 to 1.00) | 0.667 (0.00 to 1.00) | 0.667 (0.00 to 1.00) | "
        "0.727 (0.40 to 1.00) | 0.727 | 2 of 2 | 4 |",
    ]


def test_an_account_survives_its_file(tmp_path):
    account = narration(said_s=(30.0, 570.0), num_rolls=3).account
    path = tmp_path / "account.json"
    long_run.write_account(path, account)
    assert long_run.read_account(path) == account


def test_the_pages_table_is_of_the_bundled_checkpoint():
    text = long_run.PAGE.read_text(encoding="utf-8")
    ((name, fingerprint),) = (
        (match["name"], match["fingerprint"]) for match in figures.MARKED.finditer(text)
    )
    assert name == "policies"
    assert fingerprint == figures.shipped_fingerprint(), "run: make long-run"
