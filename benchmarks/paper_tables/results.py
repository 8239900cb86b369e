"""The result of a run as a small JSON file; the page of results is made from these files."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.paper_tables.arms import PLAN, Run
from mod_edge.bundle.staging import write_whole
from mod_edge.config import ModelConfig, config_from_dict
from mod_edge.errors import DataError
from mod_edge.training.resume_state import differences

FORMAT = 1
REMOVE = "remove it, and its run is carried out again"
MODEL_ROW = 0  # of an evaluation; the baselines' rows follow


@dataclass(frozen=True)
class Result:
    """The result of a finished run.

    Attributes:
        settings: everything that determines the result: model, training, base, data, measuring.
        choice: the chosen threshold and the validation F1 of each candidate.
        evaluation: `Evaluation.to_json` without the folders and the transcripts.
        training: `TrainingReport.to_json` without the folder.
        losses: "lm" and "stream", means over equal parts of the training.
        time_s: of each stage.
        versions: of the packages.
        machine: see `machine_facts`.
    """

    settings: dict[str, Any]
    choice: dict[str, Any]
    evaluation: dict[str, Any]
    training: dict[str, Any]
    losses: dict[str, list[float]]
    time_s: dict[str, float]
    versions: dict[str, str]
    machine: dict[str, Any]

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return config_from_dict(self.settings["model"])

    @property
    def total_s(self) -> float:
        """Time of all stages."""
        return sum(self.time_s.values())

    def row(self, index: int = MODEL_ROW) -> dict[str, Any]:
        """A row of the evaluation."""
        row: dict[str, Any] = self.evaluation["rows"][index]
        return row


def result_path(folder: Path, run: Run) -> Path:
    """The file of a run's result."""
    return folder / f"{run.name}.json"


def write_result(path: Path, result: Result) -> None:
    """Write a result atomically."""
    write_document(path, dataclasses.asdict(result))


def read_result(path: Path) -> Result:
    """The result at `path`.

    Raises:
        DataError: it is not a result, or has another format.
    """
    data = read_document(path)
    names = {field.name for field in dataclasses.fields(Result)}
    if data.keys() != names:
        wrong = ", ".join(sorted(data.keys() ^ names))
        raise DataError(f"{path}: {wrong} missing or unknown; {REMOVE}")
    return Result(**data)


def read_results(folder: Path) -> dict[Run, Result]:
    """All results in `folder`, in the plan's order.

    Raises:
        DataError: a result is damaged, or results cannot be compared because they differ in more
            than arm and seed.
    """
    paths = {run: result_path(folder, run) for run in PLAN}
    results = {run: read_result(path) for run, path in paths.items() if path.exists()}
    shared = [(run, shared_settings(result)) for run, result in results.items()]
    for run, settings in shared[1:]:
        if other := differences(shared[0][1], settings):
            raise DataError(
                f"{shared[0][0].name} and {run.name} in {folder} differ in more than arm and seed "
                f"({'; '.join(other)}); remove one of them"
            )
    return results


def shared_settings(result: Result) -> dict[str, Any]:
    """The settings that all runs share."""
    settings = result.settings
    model = {name: value for name, value in settings["model"].items() if name != "mod_config"}
    train = {name: value for name, value in settings["train"].items() if name != "seed"}
    return {**settings, "model": model, "train": train}


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document with its format number, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **document}, indent=1)
    write_whole(path, f"{text}\n".encode())


def read_document(path: Path) -> dict[str, Any]:
    """The document that `write_document` wrote.

    Raises:
        DataError: it cannot be read, or has another format.
    """
    data = read_json(path)
    if data.pop("format", None) != FORMAT:
        raise DataError(f"{path} is not a result of format {FORMAT}; {REMOVE}")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at `path`.

    Raises:
        DataError: it cannot be read, or is not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read: {exc}; {REMOVE}") from exc
    if not isinstance(data, dict):
        raise DataError(f"{path} is a {type(data).__name__}, wanted an object; {REMOVE}")
    return data


def thinned(values: Sequence[float | None], count: int) -> list[float]:
    """Means over `count` parts of equal length, or the values themselves if there are fewer."""
    known = [value for value in values if value is not None]
    count = min(count, len(known))
    edges = [len(known) * number // count for number in range(count + 1)]
    return [round(sum(known[start:end]) / (end - start), 4) for start, end in pairwise(edges)]
