"""An unfinished training run on disk: `OUTPUT.partial/`, from which `--resume` continues.

One file, `state.pt`, replaced atomically, holds the trained weights, the optimizer, the losses so
far and the run's identity: recipe and data, which must not change. The folder is locked while a run
writes its output.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from mod_edge.bundle.folder_lock import locked_folder
from mod_edge.errors import DataError

STATE_FILE = "state.pt"
WRITTEN_FILE = "state.pt.new"  # while it is written
SUFFIX = ".partial"
START_OVER = "start over with --force and without --resume"


@dataclass(frozen=True)
class TrainingState:
    """The state of a training run.

    Attributes:
        identity: JSON document; a run can only be resumed with an equal one.
        step: steps done.
        weights: the trained parameters by name.
        optimizer: its `state_dict`.
        lm_losses: one per step; None for a step without reply tokens.
        stream_losses: one per step; None for a step without decisions.
        auxiliary_losses: one per step; empty without an auxiliary loss.
        time_s: time of these steps.
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
        """The state of the training run that writes the folder `output`."""
        self._output = output
        self._has_begun = False
        self.folder = output.with_name(output.name + SUFFIX)

    @contextmanager
    def locked(self, *, resume: bool) -> Iterator[None]:
        """Make the folder and hold its lock; with `resume`, check first that it exists.

        Raises:
            DataError: `resume` without the folder.
            ConfigError: another training run writes the same output, or the folder cannot be made.
        """
        if resume and not self.folder.is_dir():
            raise DataError(f"there is no {self.folder} to resume from; omit --resume")
        with locked_folder(self.folder, self._output):
            try:
                yield
            finally:
                if not self._has_begun:
                    with suppress(OSError):  # holds an earlier run's state
                        self.folder.rmdir()

    def begin(self, *, resume: bool, force: bool) -> None:
        """Start the locked folder over, unless `resume` continues what it holds.

        Raises:
            DataError: an unfinished run that is neither resumed nor started over (`force`), or the
                folder holds something else.
        """
        if not resume:
            self._start_over(force=force)
        self._has_begun = True

    def _start_over(self, *, force: bool) -> None:
        if not force and (self.folder / STATE_FILE).exists():
            raise DataError(
                f"{self.folder} holds an unfinished training run; continue it with --resume or "
                "start over with --force"
            )
        if {path.name for path in self.folder.iterdir()} - {STATE_FILE, WRITTEN_FILE}:
            raise DataError(
                f"{self.folder} holds more than an unfinished training run, so --force does "
                "not remove it; remove it yourself or choose another output"
            )
        for name in (STATE_FILE, WRITTEN_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def save(self, state: TrainingState) -> None:
        """Replace the saved state atomically: a kill leaves either the old or the new one.

        Raises:
            DataError: it cannot be written; the old one is kept.
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
                f"{written} cannot be written ({exc.__context__ or exc}); free some space, then "
                "continue from the previous state with --resume"
            ) from exc

    def load(self, identity: dict[str, Any]) -> TrainingState | None:
        """The saved state; None if the run stopped before it saved one.

        Raises:
            DataError: it is damaged, or belongs to another recipe or other data.
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
                f"{self.folder} belongs to another training run: {'; '.join(other)}; use the same "
                f"recipe and data, or {START_OVER}"
            )
        return state

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The differences of two JSON documents, as "name was X, is Y"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            each
            for key in sorted({*old, *new})
            for each in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if old == new else [f"{name} was {old!r}, is {new!r}"]
