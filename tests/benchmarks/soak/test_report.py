"""The figures of a soak in its page."""

from dataclasses import replace

import pytest

from benchmarks.figures import ROOT
from benchmarks.soak.judge import Figures, Span
from benchmarks.soak.report import MARKED, figures_table, write_page
from mod_edge.errors import ModEdgeError

PAGE = ROOT / "docs" / "soak.md"
FIGURES = Figures(
    span_frames=7200,
    num_frames=172_800,
    num_dropped=40_000,
    num_rolls=9000,
    num_replies=20_000,
    wall_s=5400.0,
    longest_gap_s=0.25,
    bytes_per_frame=3.21,
    memory_bytes=210_000_000,
    first=Span(4.0, 9.0, 8.0),
    last=Span(4.25, 9.5, 8.125),
)


def test_the_figures_are_readable_with_their_units():
    table = figures_table(FIGURES)
    assert "| frames watched | 172,800 (1.00 days at 2 frames/s) |\n" in table
    assert "| time taken | 1 h 30 min, 32 frames/s |\n" in table
    assert "| growth of memory after the first 7,200 frames | 3.2 bytes per frame |\n" in table
    assert "| last 7,200 | 4.25 ms | 9.50 ms | 8.12 ms |\n" in table


def test_a_soak_of_less_than_an_hour_is_given_in_minutes():
    table = figures_table(replace(FIGURES, wall_s=2340.0))
    assert "| time taken | 39 min, 74 frames/s |\n" in table


def test_only_text_between_the_markers_is_rewritten(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- soak: checkpoint  -->\nold\n<!-- end of soak -->\nafter\n")
    write_page(page, FIGURES)
    text = page.read_text()
    assert text.startswith("before\n<!-- soak: checkpoint ")
    assert text.endswith(f"{figures_table(FIGURES)}<!-- end of soak -->\nafter\n")
    assert "old" not in text


def test_a_page_without_markers_is_refused_and_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ModEdgeError, match=r"page\.md has no line `<!-- soak: checkpoint"):
        write_page(page, FIGURES)
    assert page.read_text() == "text\n"


def test_the_page_has_one_place_for_the_figures():
    assert len(MARKED.findall(PAGE.read_text())) == 1
