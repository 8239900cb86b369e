"""The page from planted results, and the page in docs/."""

import json
from pathlib import Path

import pytest

from benchmarks.paper_tables.arms import PLAN
from benchmarks.paper_tables.report import (
    REMARKS_FILE,
    STEP_COST_FILE,
    page_text,
    write_page,
)
from benchmarks.paper_tables.results import read_json, read_results, thinned, write_document
from mod_edge.errors import DataError

PAGE = "results.md"
F1_BY_SEED = {"full": (0.81, 0.79, 0.80), "mod": (0.80, 0.80, 0.80), "early-exit": (0.3, 0.31, 0.3)}


STEP_COST = {
    "batch": {"streams": 8, "frames": 61, "tokens": 791},
    "processes": 3,
    "dtype": "bfloat16",
    "sizes": [
        {
            "title": "D=192, L=6",
            "time_s": {"full": [2.0, 1.9, 2.2], "mod": [1.0, 1.5, 1.1]},
            "step_bytes": {"full": 30 * 2**20, "mod": 10 * 2**20},
            "state_bytes": {"full": 10 * 2**20, "mod": 10 * 2**20},
            "flops_ratio": 0.6,
        }
    ],
    "versions": {"torch": "2"},
    "machine": {"architecture": "x86_64", "cores": 2, "threads": 2, "device": "cpu"},
}


@pytest.fixture(scope="module")
def folder(plant, tmp_path_factory):
    """Results of three arms with three seeds and of one with one seed, and their page."""
    folder = tmp_path_factory.mktemp("results")
    for arm, values in F1_BY_SEED.items():
        for seed, f1 in enumerate(values):
            plant(folder, f"{arm}-{seed}", f1=f1)
    plant(folder, "uniform-0", f1=0.4)
    write_document(folder / STEP_COST_FILE, STEP_COST)
    (folder / REMARKS_FILE).write_text("Because *that* is so.\n")
    write_page(folder, folder / PAGE)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    """The page's text."""
    return (folder / PAGE).read_text(encoding="utf-8")


def lines_of(page, start):
    return [line for line in page.splitlines() if line.startswith(f"| {start} |")]


def test_the_page_in_docs_is_made_from_the_results_in_docs():
    docs = Path(__file__).resolve().parents[3] / "docs"
    text = page_text(read_results(docs / "results"), docs / "results", "results")
    assert (docs / "results.md").read_text(encoding="utf-8") == text


def test_a_row_has_seeds_means_intervals_and_cost(page):
    full, mod = lines_of(page, "full computation")[1], lines_of(page, "MoD")[1]
    assert full.startswith("| full computation | 3 | 0.800 ± 0.025 | 0.700 ± 0.000 | 0.750 ± 0.000")
    assert "(1.00)" in full
    assert mod.endswith("(0.64) |")  # (11 + 3) of 22 rows in each pair of layers


def test_one_seed_is_shown_without_an_interval(page):
    (uniform,) = [line for line in lines_of(page, "uniform selection") if "0.400" in line]
    assert uniform.startswith("| uniform selection | 1 | 0.400 | 0.700 |")


def test_differences_whose_interval_excludes_zero_are_bold(page):
    (exits,) = lines_of(page, "MoD minus early exit")
    (full,) = lines_of(page, "MoD minus full computation")
    assert exits.startswith("| MoD minus early exit | 3 | **+0.497 ± 0.014** |")
    assert full.startswith("| MoD minus full computation | 3 | +0.000 ± 0.025 |")
    assert "**" not in full
    assert "| MoD minus layer skip | 0 | - |" in page


def test_only_the_first_table_has_the_baselines(page):
    (silent,) = lines_of(page, "always silent")
    assert silent.startswith("| always silent | - | 0.125 | 0.250 | 0.000 | - | 1.500 | - | - |")


def test_missing_runs_are_named(page):
    (line,) = [each for each in page.splitlines() if "runs are done" in each]
    assert line.startswith(f"10 of {len(PLAN)} runs are done; missing: layer-skip-0, random-0, ")
    assert "uniform-1, " in line
    assert "mod-" not in line


def test_the_arms_are_listed_with_their_layers(page):
    assert "| MoD | 1, 3, 5 | 2 of 10 | learned | full |" in page
    assert "| early exit | 2, 3, 4, 5 | 0 of 10 | - | - |" in page
    assert "| full computation | none | - | - | - |" in page


def test_step_costs_are_relative_to_full_computation(page):
    title, (mod, full) = "D=192, L=6", ("MoD", "full computation")
    assert f"| {title}, {full} | 2.000 s (1.900 to 2.200) | 40 MiB | 30 MiB | 1.00 | 1.00 |" in page
    assert (
        f"| {title}, {mod} | 1.100 s (1.000 to 1.500) | 20 MiB | 10 MiB | 0.60 | 0.55 | 0.50 |"
        in (page)
    )
    assert "- 8 streams of 61 frames, 791 tokens each, bfloat16 matrix products; 3 steps, 3" in page


def test_the_page_has_the_remarks_and_the_conditions(page):
    assert "## Remarks\n\nBecause *that* is so.\n" in page
    assert "- clips: train 9, test 9 (sha256 of their lines: abababab" in page
    assert "- x86_64, 2 cores, torch threads: 1, cpu; mod_edge 0, torch 2" in page
    assert "- 2.2 h for 10 runs of 13.0 to 13.0 min; medians: training 10.0 min" in page
    assert "MoD 0.6, 0.6, 0.6" in page


def test_every_plot_of_the_page_exists_and_is_small(page, folder):
    for name in ("f1.png", "lm-ppl.png", "losses.png"):
        assert f"](./{name})" in page
        assert 1_000 < (folder / name).stat().st_size < 100_000


def test_equal_results_make_equal_files(plant, tmp_path):
    plant(tmp_path, "mod-0")
    contents = []
    for _ in range(2):
        write_page(tmp_path, tmp_path / PAGE)
        contents.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert contents[0] == contents[1]


def test_the_paths_of_plots_are_relative_to_the_page(plant, tmp_path):
    plant(tmp_path / "docs" / "figures", "mod-0")
    write_page(tmp_path / "docs" / "figures", tmp_path / "docs" / PAGE)
    page = (tmp_path / "docs" / PAGE).read_text(encoding="utf-8")
    assert "](figures/f1.png)" in page
    assert "## What a training step takes" in page
    assert "\nNot measured yet.\n" in page


def test_an_infinite_perplexity_is_left_out(plant, tmp_path):
    plant(tmp_path, "mod-0", lm_ppl=None)
    plant(tmp_path, "mod-1", lm_ppl=2.0)
    page = page_text(read_results(tmp_path), tmp_path, ".")
    assert "| MoD | 2 | 0.500 ± 0.000 | 0.700 ± 0.000 | 0.750 ± 0.000 | 2.000 |" in page


def test_no_results_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no results yet; make them with `make results`"):
        write_page(tmp_path, tmp_path / PAGE)


def test_results_that_differ_in_more_than_arm_and_seed_are_not_compared(plant, tmp_path):
    plant(tmp_path, "mod-0")
    plant(tmp_path, "full-0")
    path = tmp_path / "full-0.json"
    data = read_json(path)
    data["settings"]["train"]["steps"] = 7
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"full-0 and mod-0 .*train.steps was 7, is \d+.*remove"):
        write_page(tmp_path, tmp_path / PAGE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is a list, wanted an object"),
        ("{}", "not a result of format 1"),
        ('{"format": 1, "losses": {}}', "choice, .*versions missing or unknown"),
    ],
)
def test_a_damaged_result_is_named(tmp_path, text, message):
    (tmp_path / "mod-0.json").write_text(text)
    with pytest.raises(DataError, match=rf"mod-0\.json.*{message}"):
        write_page(tmp_path, tmp_path / PAGE)


def test_a_curve_is_thinned_to_means():
    assert thinned([1.0, 2.0, 3.0, 4.0, 5.0], 2) == [1.5, 4.0]
    assert thinned([1.0, 2.0], 5) == [1.0, 2.0]
