"""Runs: train an arm, choose its threshold on `validation`, measure it on `test`.

A run that is done is not done again, one that was stopped goes on: a training from its last saved
state, what follows it from its beginning.
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
from mod_edge.native.onnx_session import usable_cores
from mod_edge.progress import OnStep
from mod_edge.training.recipe import Recipe
from mod_edge.training.resume_state import ResumeState, differences
from mod_edge.training.train import TRAINING_FILE, device_named, train

SPLITS = ("train", "validation", "test")  # learned from, chosen on, measured on
NUM_LOSSES = 40  # of a curve in a result
NUM_DIGITS = 8  # of the hash in a folder's name
# Of an evaluation, what no table shows: folders, and all that was said over every clip.
LEFT_OUT = ("model", "data", "transcripts")


@dataclass(frozen=True)
class Comparison:
    """All runs of one comparison.

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
        """How the run is trained."""
        return self.settings.recipe(run, self.base)

    def identity(self, run: Run) -> dict[str, Any]:
        """What decides a run's outcome, as it is read back from JSON; no folder's name."""
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
        """Where the run's checkpoint lies: another one if anything that decides it differs."""
        text = json.dumps(self.identity(run), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:NUM_DIGITS]
        return self.work.resolve() / f"{run.name}-{digest}"

    def find_done(self, runs: Sequence[Run]) -> dict[Run, Result]:
        """The results that are there.

        Raises:
            DataError: some are of other settings than this comparison's, all named at once.
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
                "results of other settings are there; remove them, or name another folder for "
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
    """Carry out what is not done of `runs`, in their order, and write each result.

    Args:
        comparison: of which they are.
        runs: to be done.
        max_minutes: no run begins that would not end in this time if it took as long as the
            longest so far; the first one always begins. None means no limit.
        on_step: told which part, how much of it is done and of how much.
        on_result: told each run that has been done.

    Returns:
        The runs that are left.

    Raises:
        ModEdgeError: as `train` and `evaluate`; or results of other settings are there.
        KeyboardInterrupt: stopped; the same call goes on.
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
    """Train, choose and measure; what of it was done before counts with the time it took.

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
    """sha256 of what a run takes from `base` beside its config: vision tower and tokenizer.

    Its decoder is of another size, so a base that has learned more since is still the same base.
    """
    digest = hashlib.sha256(file_sha256(base.path / TOKENIZER_FILE).encode())
    for name in sorted(tensor_shapes(base.config)):
        if name.startswith("vision_model."):
            digest.update(name.encode())
            digest.update(base.tensor(name).to(torch.float32).numpy().tobytes())
    return digest.hexdigest()


def machine_facts(device: str) -> dict[str, Any]:
    """What kind of machine this is, without its name; `device` is a recipe's."""
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
