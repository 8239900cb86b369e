"""The page of results: `page.md` with tables from the files of one folder."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from benchmarks.paper_tables.arms import ARMS, PLAN
from benchmarks.paper_tables.measures import (
    F1,
    MEASURES,
    NOTHING,
    Results,
    arm_estimate,
    difference,
    shown,
)
from benchmarks.paper_tables.plots import draw_all
from benchmarks.paper_tables.results import Result, read_document, read_results, shared_settings
from mod_edge.bundle.staging import write_whole
from mod_edge.commands.console import si
from mod_edge.config import ModelConfig
from mod_edge.errors import DataError
from mod_edge.plan.costs import PAPER_NUM_FRAMES, compare_with_full

TEMPLATE = Path(__file__).with_name("page.md")
STEP_COST_FILE, REMARKS_FILE = "step-cost.json", "remarks.md"
KIB, MIB = 2**10, 2**20

# The arms of each table, by its name in the template; "mod" is compared with each other arm.
TABLES = {
    "ways": ("full", "mod", "early-exit", "layer-skip"),
    "layers": ("mod", "interleaved-deep", "all-deep", "all"),
    "tokens": ("mod", "uniform", "random"),
    "scaling": ("mod", "delta"),
}


def write_page(folder: Path, page: Path) -> None:
    """Write the page and, into `folder`, its plots.

    Args:
        folder: of results; `remarks.md` in it becomes a section unchanged.
        page: Markdown file to write.

    Raises:
        DataError: there are no results, or some are damaged or cannot be compared.
        BackendError: matplotlib is not installed.
    """
    results = read_results(folder)
    if not results:
        raise DataError(f"{folder} has no results yet; make them with `make results`")
    baselines = {row["name"]: F1.value(row) for row in _first(results).evaluation["rows"][1:]}
    draw_all(results, {name: f1 for name, f1 in baselines.items() if f1 is not None}, folder)
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix()
    write_whole(page, page_text(results, folder, pictures).encode())


def page_text(results: Results, folder: Path, pictures: str) -> str:
    """The page as Markdown, for at least one result.

    `folder` has the step cost and the remarks; `pictures` is its path relative to the page.
    """
    first, remarks = _first(results), folder / REMARKS_FILE
    parts = {
        **_experiment(first),
        "done": _done(results),
        "arms": _arms(first.config),
        **{name: _comparison(results, arms) for name, arms in TABLES.items()},
        "step_cost": _step_cost(folder / STEP_COST_FILE),
        "remarks": remarks.read_text(encoding="utf-8").strip() if remarks.exists() else "None.",
        "pictures": pictures,
        "conditions": _conditions(results),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column aligned left and the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _experiment(first: Result) -> dict[str, Any]:
    """The settings that all runs share, by their names in the template."""
    text, measuring = first.config.text_config, first.settings["measuring"]
    return {
        "parameters": f"{first.training['num_parameters'] / 1e6:.2f}",
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "frame_num_tokens": first.config.frame_num_tokens,
        "steps": first.training["steps"],
        "num_train_clips": first.training["num_clips"],
        "tolerance_s": f"{measuring['tolerance_s']:g}",
        "thresholds": ", ".join(f"{each:g}" for each in measuring["thresholds"]),
        "num_validation_clips": measuring["num_validation_clips"],
        "num_test_clips": first.evaluation["num_clips"],
        "num_frames": PAPER_NUM_FRAMES,
    }


def _done(results: Results) -> str:
    lacking = ", ".join(run.name for run in PLAN if run not in results)
    missing = f"; missing: {lacking}" if lacking else ""
    return f"{len(results)} of {len(PLAN)} runs are done{missing}."


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
    return markdown_table(header, rows)


def _first(results: Results) -> Result:
    """Any result, for the settings that all share."""
    return next(iter(results.values()))


def _comparison(results: Results, arms: Sequence[str]) -> str:
    """The arms' figures, and the differences of MoD and each other arm."""
    first, titles = _first(results), [measure.title for measure in MEASURES]
    rows = [list(_arm_cells(results, first.config, arm)) for arm in arms]
    if arms == TABLES["ways"]:  # the only table with the baselines
        rows += map(_baseline_cells, first.evaluation["rows"][1:])
    others = [arm for arm in arms if arm != "mod"]
    figures = markdown_table(["", "seeds", *titles, "FLOPs", "keys and values"], rows)
    differences = markdown_table(
        ["difference", "seeds", *titles], (list(_difference_cells(results, arm)) for arm in others)
    )
    return f"{figures}\n\n{differences}"


def _arm_cells(results: Results, config: ModelConfig, arm: str) -> Iterator[str]:
    yield ARMS[arm].title
    yield str(sum(run.arm.name == arm for run in results))
    for measure in MEASURES:
        yield shown(arm_estimate(results, arm, measure))
    model = replace(config, mod_config=ARMS[arm].mod)
    cost = compare_with_full(model, PAPER_NUM_FRAMES, has_interval=True)
    yield f"{si(cost.model.flops, 'FLOPs')} ({cost.flops_ratio:.2f})"
    yield f"{cost.model.kv_bytes / KIB:.1f} KiB ({cost.kv_ratio:.2f})"


def _baseline_cells(row: Mapping[str, Any]) -> list[str]:
    figures = (measure.value(row) for measure in MEASURES)
    cells = (NOTHING if each is None else f"{each:.3f}" for each in figures)
    return [row["name"], NOTHING, *cells, NOTHING, NOTHING]


def _difference_cells(results: Results, other: str) -> Iterator[str]:
    yield f"{ARMS['mod'].title} minus {ARMS[other].title}"
    by_f1 = difference(results, "mod", other, F1)
    yield str(by_f1.num_seeds if by_f1 else 0)
    for measure in MEASURES:
        found = difference(results, "mod", other, measure)
        cell = shown(found, sign="+")
        yield f"**{cell}**" if found is not None and found.is_clear else cell


def _step_cost(path: Path) -> str:
    if not path.exists():
        return "Not measured yet."
    data = read_document(path)
    header = ("", "time", "memory", "step only", "FLOPs", "time ratio", "memory ratio")
    rows = [row for size in data["sizes"] for row in _size_rows(size)]
    batch, rounds = data["batch"], len(data["sizes"][0]["time_s"]["full"])
    conditions = (
        f"- {batch['streams']} streams of {batch['frames']} frames, {batch['tokens']} tokens each, "
        f"{data['dtype']} matrix products; {rounds} steps, {data['processes']} processes\n"
        f"- {_machine(data['machine'], data['versions'])}"
    )
    return f"{markdown_table(header, rows)}\n\n{conditions}"


def _size_rows(size: Mapping[str, Any]) -> Iterator[list[str]]:
    times = {arm: median(each) for arm, each in size["time_s"].items()}
    peaks = {arm: size["state_bytes"][arm] + size["step_bytes"][arm] for arm in times}
    for arm, each in size["time_s"].items():
        yield [
            f"{size['title']}, {ARMS[arm].title}",
            f"{times[arm]:.3f} s ({min(each):.3f} to {max(each):.3f})",
            f"{peaks[arm] / MIB:.0f} MiB",
            f"{size['step_bytes'][arm] / MIB:.0f} MiB",
            f"{size['flops_ratio'] if arm == 'mod' else 1:.2f}",
            f"{times[arm] / times['full']:.2f}",
            f"{peaks[arm] / peaks['full']:.2f}",
        ]


def _conditions(results: Results) -> str:
    settings = shared_settings(_first(results))
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
        f"- clips: {splits} (sha256 of their lines: {digests}); base {settings['base'][:8]}",
        f"- training: {', '.join(f'{name} {_plain(value)}' for name, value in train.items())}",
        *(f"- {machine}" for machine in machines),
        f"- {sum(minutes) / 60:.1f} h for {len(minutes)} runs of {minutes[0]:.1f} to "
        f"{minutes[-1]:.1f} min; medians: training {train_s / 60:.1f} min, threshold "
        f"{choose_s / 60:.1f} min, measuring {measure_s / 60:.1f} min",
        f"- chosen thresholds, seed by seed: {_thresholds(results)}",
    ]
    return "\n".join(lines)


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
