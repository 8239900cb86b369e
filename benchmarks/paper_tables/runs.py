"""Runs: train an arm, choose its threshold on `validation`, evaluate it on `test`.

A finished run is not repeated. A stopped run continues: its training from the last saved state, the
later stages from their start.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper_tables.arms import Run
from benchmarks.paper_tables.results import (
    Result,
    read_json,
    read_result,
    result_path,
    thinned,
    write_result,
)
from benchmarks.paper_tables.settings import Settings
from mod_edge.bundle.manifest import TOKENIZER_FILE, file_sha256
from mod_edge.config import config_to_dict
from mod_edge.data.clips import read_clips, split_file
from mod_edge.errors import DataError
from mod_edge.evaluation.evaluate import evaluate
from mod_edge.evaluation.thresholds import adopt_threshold, choose_threshold
from mod_edge.model.checkpoint import Checkpoint, is_checkpoint, tensor_shapes
from mod_edge.native.cpu_cores import usable_cores
from mod_edge.progress import OnStep
from mod_edge.training.recipe import Recipe
from mod_edge.training.resume_state import ResumeState, differences
from mod_edge.training.train import TRAINING_FILE, device_named, train

SPLITS = ("train", "validation", "test")  # for training, choosing the threshold, evaluation
NUM_LOSSES = 40  # of a curve in a result
NUM_DIGITS = 8  # of the hash in a folder's name
LEFT_OUT = ("model", "data", "transcripts")  # parts of an evaluation that no table shows


@dataclass(frozen=True)
class Comparison:
    """The inputs, folders and settings of one comparison.

    Attributes:
        data: the data set's folder.
        base: the checkpoint that every run starts from.
        work: folder for checkpoints.
        results: folder for results.
        settings: of all runs.
    """

    data: Path
    base: Checkpoint
    work: Path
    results: Path
    settings: Settings

    def recipe(self, run: Run) -> Recipe:
        """The run's training recipe."""
        return self.settings.recipe(run, self.base)

    def identity(self, run: Run) -> dict[str, Any]:
        """Everything that determines a run's result, as read back from JSON, without folders."""
        recipe = self.recipe(run)
        document = {
            "model": config_to_dict(recipe.model),
            "train": asdict(recipe.train),
            "measuring": self.settings.measuring(),
            **self._inputs,
        }
        identity: dict[str, Any] = json.loads(json.dumps(document))
        return identity

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        data = {
            split: {
                "sha256": file_sha256(split_file(self.data, split)),
                "clips": len(read_clips(self.data, split)),
            }
            for split in SPLITS
        }
        return {"base": _digest(self.base), "data": data}

    def folder(self, run: Run) -> Path:
        """The folder of the run's checkpoint; its name includes a hash of the run's identity."""
        text = json.dumps(self.identity(run), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:NUM_DIGITS]
        return self.work.resolve() / f"{run.name}-{digest}"

    def find_done(self, runs: Sequence[Run]) -> dict[Run, Result]:
        """The existing results.

        Raises:
            DataError: some have other settings than this comparison; names all of them.
        """
        paths = {run: result_path(self.results, run) for run in runs}
        done = {run: read_result(path) for run, path in paths.items() if path.exists()}
        faults = [
            f"{paths[run]}: {'; '.join(other)}"
            for run, result in done.items()
            if (other := differences(result.settings, self.identity(run)))
        ]
        if faults:
            raise DataError(
                "some results have other settings; remove them, or choose another folder for "
                f"results: {'; '.join(faults)}"
            )
        return done


def carry_out_all(
    comparison: Comparison,
    runs: Sequence[Run],
    *,
    max_minutes: float | None,
    on_step: OnStep,
    on_result: Callable[[Run], None],
) -> list[Run]:
    """Carry out the missing ones of `runs` in order, and write each result.

    Args:
        comparison: inputs, folders and settings.
        runs: to carry out.
        max_minutes: a run only starts if it would end within this time when it takes as long as
            the longest so far; the first one always starts. None means no limit.
        on_step: progress callback.
        on_result: called with each finished run.

    Returns:
        The runs still missing.

    Raises:
        ModEdgeError: from `train` or `evaluate`, or existing results have other settings.
        KeyboardInterrupt: stopped; the same call continues.
    """
    done = comparison.find_done(runs)
    left = [run for run in runs if run not in done]
    started = time.monotonic()
    longest_s = 0.0
    while left:
        if max_minutes is not None:
            end_s = time.monotonic() - started + longest_s
            if longest_s and end_s > 60 * max_minutes:
                break
        run, begun = left[0], time.monotonic()
        result = carry_out(comparison, run, on_step)
        write_result(result_path(comparison.results, run), result)
        longest_s = max(longest_s, time.monotonic() - begun)
        del left[0]
        on_result(run)
    return left


def carry_out(comparison: Comparison, run: Run, on_step: OnStep) -> Result:
    """Train, choose the threshold and evaluate; a finished training keeps its measured time.

    Raises:
        ModEdgeError, KeyboardInterrupt: see `carry_out_all`.
    """
    settings, data = comparison.settings, comparison.data
    recipe, folder = comparison.recipe(run), comparison.folder(run)
    times: dict[str, float] = {}

    def tell(name: str, done: float, total: float) -> None:
        on_step(f"{run.name}: {name}", done, total)

    if not is_checkpoint(folder):
        is_begun = ResumeState(folder).folder.exists()
        train(data, recipe, folder, resume=is_begun, force=False, on_step=tell)
    training = read_json(folder / TRAINING_FILE)
    times["train"] = training["report"]["time_s"]
    with _timed(times, "choose"):
        clips = read_clips(data, "validation")[: settings.num_validation_clips]
        choice = choose_threshold(
            folder, clips, settings.thresholds, tolerance_s=settings.tolerance_s, on_step=tell
        )
        adopt_threshold(folder, choice.threshold)
    with _timed(times, "measure"):
        evaluation = evaluate(
            folder,
            data,
            max_clips=settings.num_test_clips,
            tolerance_s=settings.tolerance_s,
            on_step=tell,
        ).to_json()
    return Result(
        settings=comparison.identity(run),
        choice=asdict(choice),
        evaluation={key: evaluation[key] for key in evaluation if key not in LEFT_OUT},
        training=training["report"],
        losses={name: thinned(each, NUM_LOSSES) for name, each in training["losses"].items()},
        time_s=times,
        versions=training["versions"],
        machine=machine_facts(recipe.train.device),
    )


def _digest(base: Checkpoint) -> str:
    """sha256 of the parts of `base` that a run uses beside the config: vision tower and tokenizer.

    A run's decoder has another size, so the base's decoder and its weights do not matter.
    """
    digest = hashlib.sha256(file_sha256(base.path / TOKENIZER_FILE).encode())
    for name in sorted(tensor_shapes(base.config)):
        if name.startswith("vision_model."):
            digest.update(name.encode())
            digest.update(base.tensor(name).to(torch.float32).numpy().tobytes())
    return digest.hexdigest()


def machine_facts(device: str) -> dict[str, Any]:
    """The kind of this machine, without its name; `device` is a recipe's."""
    return {
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": device_named(device).type,
    }


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[name] = round(time.perf_counter() - started, 3)
