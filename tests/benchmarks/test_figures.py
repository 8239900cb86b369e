"""The pages' figures belong to the bundled checkpoint, and only they are rewritten."""

import re

import pytest

from benchmarks import figures
from mod_edge.errors import ModEdgeError

PAGES = (figures.ROOT / "README.md", figures.CARD, figures.ROOT / "docs" / "demo.md")
FINGERPRINT = figures.shipped_fingerprint()
MAX_PICTURE_BYTES = 300_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_in_a_page_belongs_to_the_bundled_checkpoint(page):
    text = page.read_text(encoding="utf-8")
    found = list(figures.MARKED.finditer(text))
    assert found
    assert len(found) == text.count("<!-- figures:")
    assert {match["fingerprint"] for match in found} == {FINGERPRINT}, "run: make figures"


def test_the_picture_belongs_to_the_bundled_checkpoint_and_loads_nothing():
    picture = figures.PICTURE.read_text(encoding="utf-8")
    assert len(picture) < MAX_PICTURE_BYTES
    assert f"<desc>checkpoint {FINGERPRINT}</desc>" in picture, "run: make figures"
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", picture))
    assert addresses == {"http://www.w3.org/2000/svg", "https://www.textualize.io"}  # names only


def test_only_text_between_the_markers_is_rewritten(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- figures: speed, checkpoint none -->\nold\n<!-- end of figures -->\nafter\n"
    )
    figures.rewrite_page(page, {"speed": lambda: "new\n"}, "1a2b")
    assert page.read_text() == (
        "before\n<!-- figures: speed, checkpoint 1a2b -->\nnew\n<!-- end of figures -->\nafter\n"
    )


def test_an_unknown_figure_lists_the_known_ones(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: sped, checkpoint none -->\n<!-- end of figures -->\n")
    with pytest.raises(ModEdgeError, match="no figure 'sped'; known are speed"):
        figures.rewrite_page(page, {"speed": lambda: "new\n"}, "1a2b")
    assert "sped, checkpoint none" in page.read_text()


def entry(due, said, late_s=0.0, *, query=None):
    return {
        "query": query,
        "due": due,
        "said": said,
        "late_s": late_s,
        "is_right": due == said,
    }


def test_mistakes_are_counted_only_at_right_moments():
    entries = [
        entry("The red ball stops.", "The red ball stops."),
        entry("The red ball stops.", "The red box stops."),
        entry("The red ball moves up.", "The blue ball moves left."),
        entry("The red ball stops.", "The red box stops.", late_s=2.5),
        entry("Yes.", "No.", query="Is there a box?"),
        entry("The red ball stops.", None, None),
    ]
    text = figures.mistakes({"tolerance_s": 1.0, "transcripts": [{"entries": entries}]})
    assert text == (
        "Of the 2 wrong captions at the right moment, 1 differ from the right one in shapes, 1 in "
        "colours and 1 in directions;\nsome differ in several.\n"
    )


def test_captions_of_new_combinations_are_counted_apart():
    entries = [
        entry("The red star stops.", "The red star stops."),
        entry("A small cyan star enters from the left.", None),
        entry("The red ball hits the pink box.", "The red ball hits the pink cross."),
        entry("The red ball stops.", "The red ball stops."),
        entry(None, "The red star stops."),
        entry("The star.", "The star.", query="Which object is red?"),
    ]
    row = {"free_running": {"f1": 0.5, "moment_f1": 0.75}}
    measured = {"num_clips": 1, "rows": [row], "transcripts": [{"entries": entries}]}
    assert figures.combinations(measured) == (
        "On 1 clips of the split `combinations`, F1 is 0.500 and moment F1 0.750. Captions "
        "that name such a combination: 1 of 3 right; others: 1 of 1.\n"
    )
