"""An unfinished training on disk: `OUTPUT.partial/`, from which `--resume` goes on.

One file, `state.pt`, replaced whole every time, holds the trained weights, the optimizer, the
losses so far and what the training is: recipe and data, which must be the same to go on.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mod_edge.errors import DataError

STATE_FILE = "state.pt"
WRITTEN_FILE = "state.pt.new"  # while it is written
SUFFIX = ".partial"
START_OVER = "start over with --force and without --resume"


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands.

    Attributes:
        identity: JSON-able; two trainings are the same if it is.
        step: steps done.
        weights: the trained parameters by name.
        optimizer: its `state_dict`.
        lm_losses: of each step so far; None where it had none.
        stream_losses: likewise.
        auxiliary_losses: of each step so far; empty without an auxiliary loss.
        time_s: spent on these steps.
    """

    identity: dict[str, Any]
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    lm_losses: list[float | None]
    stream_losses: list[float | None]
    auxiliary_losses: list[float]
    time_s: float


class ResumeState:
    """The folder beside `output` that holds the state."""

    def __init__(self, output: Path) -> None:
        """Of the training that is to make the folder `output`."""
        self.folder = output.with_name(output.name + SUFFIX)

    def begin(self, *, resume: bool, force: bool) -> None:
        """Make the folder, or see that it is there where it should be.

        Raises:
            DataError: `resume` and none is there, or one is there and it is neither to be resumed
                nor (`force`) to be started over, or it is something else.
        """
        if resume and not self.folder.is_dir():
            raise DataError(f"there is no {self.folder} to resume from; leave --resume away")
        if not resume and self.folder.exists():
            if not force and (self.folder / STATE_FILE).exists():
                raise DataError(
                    f"{self.folder} holds an unfinished training; --resume goes on with it, "
                    "--force starts over"
                )
            if {path.name for path in self.folder.iterdir()} - {STATE_FILE, WRITTEN_FILE}:
                raise DataError(
                    f"{self.folder} holds more than an unfinished training; --force does not "
                    "remove it: remove it yourself or name another output"
                )
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: TrainingState) -> None:
        """Replace the state by this one; a kill at any moment leaves one of the two whole.

        Raises:
            DataError: it cannot be written; the one before is still there.
        """
        written = self.folder / WRITTEN_FILE
        try:
            with written.open("wb") as file:
                torch.save(vars(state), file)
                file.flush()
                os.fsync(file.fileno())
            written.replace(self.folder / STATE_FILE)
        except (OSError, RuntimeError) as exc:  # torch's writer hides a full disk behind its own
            with suppress(OSError):
                written.unlink(missing_ok=True)
            raise DataError(
                f"{written} cannot be written ({exc.__context__ or exc}); make room, then "
                "--resume goes on from the state before"
            ) from exc

    def load(self, identity: dict[str, Any]) -> TrainingState | None:
        """The state to go on from, None where the training ended before the first was saved.

        Raises:
            DataError: it is damaged, or that of another recipe or other data.
        """
        path = self.folder / STATE_FILE
        if not path.is_file():
            return None
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as exc:
            raise DataError(f"{path} is damaged ({exc}); {START_OVER}") from exc
        if not isinstance(saved, dict) or saved.keys() != TrainingState.__annotations__.keys():
            raise DataError(f"{path} was saved by another version of mod-edge; {START_OVER}")
        state = TrainingState(**saved)
        other = differences(state.identity, identity)
        if other:
            raise DataError(
                f"{self.folder} is of another training: {'; '.join(other)}; give the same recipe "
                f"and data, or {START_OVER}"
            )
        return state

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


def differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """Where two JSON documents differ, as "name was X, is Y"."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            each
            for key in sorted({*theirs, *ours})
            for each in differences(theirs.get(key), ours.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if theirs == ours else [f"{name} was {theirs!r}, is {ours!r}"]
