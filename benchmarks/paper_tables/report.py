"""The page of results, from the files in its folder alone."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.paper_tables.arms import ARMS, PLAN
from benchmarks.paper_tables.findings import (
    JUDGE,
    MEASURES,
    NOTHING,
    QUESTIONS,
    Question,
    Results,
    arm_estimate,
    difference,
    outcome,
    sentence,
)
from benchmarks.paper_tables.plots import F1_FILE, LOSSES_FILE, PPL_FILE, draw_all
from benchmarks.paper_tables.results import Result, read_document, read_results, shared_settings
from mod_edge.bundle.staging import write_whole
from mod_edge.commands.console import si
from mod_edge.config import ModelConfig
from mod_edge.errors import DataError
from mod_edge.plan.costs import PAPER_NUM_FRAMES, compare_with_full

STEP_COST_FILE, REMARKS_FILE = "step-cost.json", "remarks.md"
KIB, MIB = 2**10, 2**20

HOW_TO_READ = """\
F1, moment F1 and answers are of the model left to itself over a clip: a caption is right if it says
what is due within {tolerance_s:g} s, a moment if anything is said then, an answer if it answers the
question. The decision threshold is each run's best of {thresholds} on {num_validation} validation
clips; nothing else is chosen, all arms share one recipe. LM-PPL, TimeDiff, Fluency and
LM-Correctness are the paper's, fed the true dialogue, at threshold 0, but silence before a question
counts as right (`docs/decisions.md`). The last rows of Table 1 never look: they say the most
frequent caption never, at every frame, or at the right moments, and the last two give the most
frequent answer to each question.

A figure is the mean over seeds with its 95 % t interval; of one seed there is no interval. A
difference is taken seed by seed, and is bold where its interval leaves out 0. The sentences go by
F1. Intervals tell of seeds alone, as all runs are measured on the same {num_clips} test clips, and
nothing is corrected for the number of comparisons. FLOPs, and keys and values in float32, are the
decoder's for a frame and its interval token, the mean over a stream of {num_frames} frames; in
brackets relative to full computation."""

STEP_COST_TEXT = """\
A batch of {streams} made-up streams of {frames} frames, {tokens} tokens each, {dtype} products;
forward and backward pass and the optimizer's step. Times are medians of {rounds} steps, taken
alternately in one process (least to most in brackets); memory is weights, optimizer and the peak of
a step beside them, the median of {processes} fresh processes. FLOPs: the decoder's, counted."""


def write_page(folder: Path, page: Path) -> None:
    """Write the page and, into `folder`, its pictures.

    Args:
        folder: of results; `remarks.md` in it, if there, becomes a section as it is.
        page: Markdown file to write.

    Raises:
        DataError: no result at all, a damaged one, or some that cannot be compared.
        BackendError: matplotlib is not installed.
    """
    results = read_results(folder)
    if not results:
        raise DataError(f"{folder} holds no results yet; `make results` makes them")
    first = next(iter(results.values()))
    baselines = first.evaluation["rows"][1:]
    draw_all(results, _known({row["name"]: JUDGE.value(row) for row in baselines}), folder)
    pictures = Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix()
    parts = [
        _opening(results, first),
        _arms(first.config),
        *(_section(results, first, question) for question in QUESTIONS),
        _step_cost(folder / STEP_COST_FILE),
        _remarks(folder / REMARKS_FILE),
        _pictures(pictures),
        _conditions(results, first),
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, ("\n\n".join(part for part in parts if part) + "\n").encode())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its first column aligned left and the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _opening(results: Results, first: Result) -> str:
    text, settings = first.config.text_config, first.settings
    measuring = settings["measuring"]
    thresholds = ", ".join(f"{each:g}" for each in measuring["thresholds"])
    return "\n\n".join(
        [
            "# Results: the paper's comparisons on a small scale",
            "Written by `make results` from the files in its folder of results; change those, not "
            "this page.",
            f"Models of {first.training['num_parameters'] / 1e6:.2f} million parameters "
            f"(D={text.hidden_size}, {text.num_hidden_layers} layers, "
            f"{first.config.frame_num_tokens} tokens a frame), each trained for "
            f"{first.training['steps']} steps on {first.training['num_clips']} clips of made-up "
            "scenes from the same vision tower and a decoder that had learned nothing. This is not "
            "the paper's scale, nor its data: it tells whether the paper's order shows here. The "
            "arms differ in `mod_config` alone.",
            _missing(results),
            HOW_TO_READ.format(
                tolerance_s=measuring["tolerance_s"],
                thresholds=thresholds,
                num_validation=measuring["num_validation_clips"],
                num_clips=first.evaluation["num_clips"],
                num_frames=PAPER_NUM_FRAMES,
            ),
        ]
    )


def _missing(results: Results) -> str:
    left = {
        name: [str(run.seed) for run in PLAN if run.arm.name == name and run not in results]
        for name in ARMS
    }
    lacking = [f"{ARMS[name].title} ({', '.join(seeds)})" for name, seeds in left.items() if seeds]
    count = f"{len(results)} of {len(PLAN)} runs are done"
    return f"{count}; missing (seeds): {'; '.join(lacking)}." if lacking else f"All {count}."


def _arms(config: ModelConfig) -> str:
    rows = []
    for arm in ARMS.values():
        model = replace(config, mod_config=arm.mod)
        layers = ", ".join(map(str, model.mod_layers)) or "none"
        selection = scaled = NOTHING
        if arm.mod is not None and not arm.mod.is_baseline:
            selection = arm.mod.selection
        if arm.mod is not None and model.has_router:
            scaled = arm.mod.router_scaling
        kept = f"{model.num_kept} of {model.frame_num_tokens}" if arm.mod else NOTHING
        rows.append((arm.title, layers, kept, selection, scaled))
    header = ("arm", "MoD layers", "vision tokens there", "selection", "router scales")
    return f"## Arms\n\n{markdown_table(header, rows)}"


def _section(results: Results, first: Result, question: Question) -> str:
    header = ["", "seeds", *(each.title for each in MEASURES), "FLOPs", "keys and values"]
    rows = [list(_arm_cells(results, first.config, arm)) for arm in question.arms]
    if question is QUESTIONS[0]:
        for row in first.evaluation["rows"][1:]:
            figures = (measure.value(row) for measure in MEASURES)
            cells = (NOTHING if each is None else f"{each:.3f}" for each in figures)
            rows.append([row["name"], NOTHING, *cells, NOTHING, NOTHING])
    return "\n\n".join(
        [
            f"## {question.title}",
            question.paper,
            f"**{sentence(results, question)}**",
            markdown_table(header, rows),
            markdown_table(
                ["difference", "seeds", *(each.title for each in MEASURES)],
                _difference_rows(results, question),
            ),
        ]
    )


def _arm_cells(results: Results, config: ModelConfig, arm: str) -> Iterator[str]:
    yield ARMS[arm].title
    yield str(sum(run.arm.name == arm for run in results))
    for measure in MEASURES:
        yield measure.format(arm_estimate(results, arm, measure))
    model = replace(config, mod_config=ARMS[arm].mod)
    cost = compare_with_full(model, PAPER_NUM_FRAMES, has_interval=True)
    yield f"{si(cost.model.flops, 'FLOPs')} ({cost.flops_ratio:.2f})"
    yield f"{cost.model.kv_bytes / KIB:.1f} KiB ({cost.kv_ratio:.2f})"


def _difference_rows(results: Results, question: Question) -> Iterator[list[str]]:
    for claim in question.claims:
        cells = []
        for measure in MEASURES:
            found = difference(results, claim, measure)
            cell = measure.format(found, sign="+")
            is_clear = outcome(found, measure) in ("better", "worse")
            cells.append(f"**{cell}**" if is_clear else cell)
        judged = difference(results, claim, JUDGE)
        num_seeds = judged.num_seeds if judged else 0
        title = f"{ARMS[claim.ours].title} less {ARMS[claim.other].title}"
        yield [title, str(num_seeds), *cells]


def _step_cost(path: Path) -> str:
    if not path.exists():
        return ""
    data = read_document(path)
    rows, parts = [], []
    for size in data["sizes"]:
        times = {arm: median(each) for arm, each in size["time_s"].items()}
        peaks = {arm: size["state_bytes"][arm] + size["step_bytes"][arm] for arm in times}
        time_ratio, peak_ratio = times["mod"] / times["full"], peaks["mod"] / peaks["full"]
        parts.append(
            f"at {size['title']} a step of MoD takes {time_ratio:.2f} of the time and "
            f"{peak_ratio:.2f} of the memory of full computation"
        )
        rows += [
            [
                f"{size['title']}, {ARMS[arm].title}",
                f"{times[arm]:.3f} s ({min(each):.3f} to {max(each):.3f})",
                f"{peaks[arm] / MIB:.0f} MiB",
                f"{size['step_bytes'][arm] / MIB:.0f} MiB",
                f"{size['flops_ratio'] if arm == 'mod' else 1:.2f}",
            ]
            for arm, each in size["time_s"].items()
        ]
    told = "; ".join(parts)
    verdict = f"{told[0].upper()}{told[1:]}; the paper reports 0.58 and 0.70 for its 8B model."
    rounds = len(data["sizes"][0]["time_s"]["full"])
    text = STEP_COST_TEXT.format(
        **data["batch"], dtype=data["dtype"], rounds=rounds, processes=data["processes"]
    )
    header = ("", "time", "memory", "of it the step", "FLOPs")
    return "\n\n".join(
        [
            "## What a training step takes",
            f"**{verdict}**",
            f"{text} {_machine(data['machine'], data['versions'])}.",
            markdown_table(header, rows),
        ]
    )


def _remarks(path: Path) -> str:
    return f"## Remarks\n\n{path.read_text(encoding='utf-8').strip()}" if path.exists() else ""


def _pictures(folder: str) -> str:
    pictures = (("F1 by arm", F1_FILE), ("LM-PPL by arm", PPL_FILE), ("Losses", LOSSES_FILE))
    return "\n\n".join(
        ["## Pictures", *(f"![{title}]({folder}/{file})" for title, file in pictures)]
    )


def _conditions(results: Results, first: Result) -> str:
    settings = shared_settings(first)
    train, data = settings["train"], settings["data"]
    splits = ", ".join(f"{split} {each['clips']}" for split, each in data.items())
    digests = ", ".join(each["sha256"][:8] for each in data.values())
    machines = sorted({_machine(each.machine, each.versions) for each in results.values()})
    minutes = sorted(each.total_s / 60 for each in results.values())
    train_s, choose_s, measure_s = (
        median(each.time_s[part] for each in results.values())
        for part in ("train", "choose", "measure")
    )
    lines = [
        "`make results` draws the data, carries out the runs that are missing, each from one "
        "vision tower and a decoder that has learned nothing (`base/README.md`), and writes this "
        "page. Each run's figures are in a JSON file beside the plots; without its file a run is "
        "carried out again.",
        f"- clips: {splits} (sha256 of their lines: {digests}); base {settings['base'][:8]}",
        f"- training: {', '.join(f'{name} {_plain(value)}' for name, value in train.items())}",
        *(f"- {machine}" for machine in machines),
        f"- {sum(minutes) / 60:.1f} h for {len(minutes)} runs of {minutes[0]:.1f} to "
        f"{minutes[-1]:.1f} min; medians: training {train_s / 60:.1f} min, threshold "
        f"{choose_s / 60:.1f} min, measuring {measure_s / 60:.1f} min",
        f"- thresholds chosen, seed by seed: {_thresholds(results)}",
    ]
    return f"## How this was made\n\n{lines[0]}\n\n" + "\n".join(lines[1:])


def _thresholds(results: Results) -> str:
    chosen: dict[str, list[str]] = {}
    for run, result in results.items():
        chosen.setdefault(run.arm.title, []).append(f"{result.choice['threshold']:g}")
    return "; ".join(f"{title} {', '.join(each)}" for title, each in chosen.items())


def _machine(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    cores = f"{machine['cores']} cores, torch threads: {machine['threads']}"
    return f"{machine['architecture']}, {cores}, {machine['device']}; {packages}"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
