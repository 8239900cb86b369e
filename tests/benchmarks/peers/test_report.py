"""The page of performance, from given measurements."""

from datetime import date
from types import SimpleNamespace

import pytest

from benchmarks.peers import measurements as measurements_module
from benchmarks.peers.builds import TEXT
from benchmarks.peers.contenders import CONTENDERS, ENVIRONMENTS, OURS
from benchmarks.peers.interleaving import Interleaved, Step
from benchmarks.peers.measurements import ContenderFacts, Measurements
from benchmarks.peers.report import (
    rounds_text,
    time_text,
    times_table,
    write_first_page,
    write_page,
)
from mod_edge.errors import ModEdgeError

STEPS = (Step(70, 11, 3), Step(90, 11, 3))
MODELS = {each.key: each.model for each in CONTENDERS}
FACTS = ContenderFacts({"somewhere": "1.2"}, 2.5, 3 * 10**9, 2 * 10**9, 10**9)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    device = SimpleNamespace(instruction_sets=("avx2", "avx512_vnni"))
    monkeypatch.setattr(measurements_module, "look_at_device", lambda _num_threads: device)
    monkeypatch.setattr(measurements_module, "machine_name", lambda: "2 cores of an A CPU")
    kept = Measurements(tmp_path / "measurements", MODELS)
    kept.add_facts(date(2026, 1, 2), dict.fromkeys(MODELS, FACTS))
    for step in STEPS:
        times_ms = {key: [90.0, 400.0, 100.0] for key in MODELS} | {OURS: [50.0, 1.0, 60.0]}
        kept.add(step, Interleaved(times_ms, {}, 0.01, 0.25))
    return kept


def test_measurements_of_other_models_count_as_missing(kept, tmp_path):
    assert kept.missing(STEPS) == []
    other = Measurements(tmp_path / "measurements", MODELS | {OURS: "changed"})
    assert other.missing(STEPS) == list(STEPS)


def test_an_interrupted_run_has_the_other_steps_left(kept):
    new = Step(90, 1, 3)
    assert kept.missing((*STEPS, new)) == [new]


def test_the_own_bench_runs_once(kept):
    printed = iter(["first"])
    assert kept.own_bench(lambda: next(printed)) == "first"
    assert kept.own_bench(lambda: next(printed)) == "first"


def test_a_figure_is_a_median_and_ours_divided_by_it():
    times_ms = {OURS: [50.0, 1.0, 60.0], "llama-cpp": [90.0, 400.0, 100.0]}
    assert time_text(times_ms, OURS) == "50"
    assert time_text(times_ms, "llama-cpp") == "100 (0.50x)"
    assert time_text(times_ms, "eager") == "-"


def test_a_contender_that_cannot_be_built_is_a_row_that_says_why(kept):
    found = {step: kept.of(step) for step in STEPS}
    table = times_table(found, 70, {"llama-cpp": "cannot be built: no compiler | none"})
    assert "| llama.cpp Q4_0 | cannot be built: no compiler \\| none |\n" in table


def test_the_page_has_every_contender_the_machine_and_the_load(kept, tmp_path):
    page = tmp_path / "performance.md"
    write_page(page, TEXT, kept, STEPS, {}, "step, 1 frame  70.1 ms")
    text = page.read_text(encoding="utf-8")
    assert "$" not in text
    assert "2 cores of an A CPU (avx2, avx512_vnni), 2026-01-02" in text
    for contender in CONTENDERS:
        assert text.count(f"| {contender.title} |") == 4  # two lengths of the past, two facts
    assert "vocabulary 128,256" in text
    assert "```text\nstep, 1 frame  70.1 ms\n```" in text
    assert "0.25 cores busy on average" in text
    assert "| mod-edge int8, MoD | 2.00 | 1.00 | 2.5 | 3.00 |" in text


def test_rounds_are_named_apart_where_they_differ():
    assert rounds_text(STEPS) == "3"
    assert rounds_text((Step(70, 1, 9), Step(70, 55, 5))) == "9 (55 tokens: 5)"


def test_every_peer_has_an_environment():
    assert {each.environment for each in CONTENDERS} == {"", *ENVIRONMENTS}


def test_the_first_page_gets_some_rows_of_the_longer_past_between_its_markers(kept, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- peers -->\nold\n<!-- end of peers -->\nafter\n", encoding="utf-8")
    write_first_page(page, kept, STEPS)
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[:5] == [
        "before",
        "<!-- peers -->",
        "|  | 11 tokens, ms |",
        "| --- | --- |",
        "| mod-edge int8, MoD | 50 |",
    ]
    assert "| llama.cpp Q4_0 | 100 (0.50x) |" in lines
    assert lines[-2:] == ["<!-- end of peers -->", "after"]
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ModEdgeError, match="0 pairs of markers for peers, wanted one"):
        write_first_page(page, kept, STEPS)
