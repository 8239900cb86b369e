"""A checkpoint's folder before its weights are read: is it one, and can its files be read?

Needs no PyTorch, so that the commands that do without it say the same.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from mod_edge.bundle.manifest import CONFIG_FILE, is_lfs_pointer
from mod_edge.config import ModelConfig, read_config
from mod_edge.errors import CheckpointError, joined_faults

NUM_FAULTS_SHOWN = 12
# Owner and name of a repository on the Hugging Face Hub. Path joins the slashes of an address.
HUB_NAME = re.compile(r"(?:(?:https?:/)?/?huggingface\.co/|hf:/+)?(\w[\w.-]*/(\w[\w.-]*))/?")
COPY_AGAIN = "copy or download the checkpoint again"


def read_checkpoint_config(folder: Path) -> ModelConfig:
    """The config of the checkpoint at `folder`.

    Raises:
        CheckpointError: `folder` is not a checkpoint, or its config.json cannot be read.
        ConfigError: config.json is invalid.
    """
    path = require_config(
        folder,
        "checkpoint",
        advice=f"create one with random weights with: mod-edge init tiny {folder}",
    )
    try:
        return read_config(path)
    except OSError as exc:
        raise unreadable(path, exc) from exc


def require_config(folder: Path, kind: str, *, advice: str) -> Path:
    """The path of the config.json in `folder`, which exists and can be read.

    Args:
        folder: any path, or what a user takes for one.
        kind: what `folder` should be the folder of, such as "checkpoint".
        advice: what to do if it is not, unless it looks like a name on the Hugging Face Hub.

    Raises:
        CheckpointError: `folder` is not a folder, or its config.json is missing or cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        path.lstat()
    except FileNotFoundError as exc:
        fault = f"no {CONFIG_FILE}"
        if not folder.exists():
            fault, advice = "no such folder", download_advice(folder) or advice
        raise CheckpointError(f"{folder} is not a {kind} ({fault}); {advice}") from exc
    except NotADirectoryError as exc:
        raise CheckpointError(f"{folder} is a file; give the {kind}'s folder") from exc
    except OSError as exc:
        raise unreadable(path, exc) from exc
    require_files(folder, [path])
    return path


def download_advice(name: Path | str) -> str:
    """How to download `name` if it can be a model on the Hugging Face Hub, "" otherwise."""
    match = HUB_NAME.fullmatch(str(name))
    if match is None or Path(name).parent.is_dir():  # a mistyped path
        return ""
    repository, folder = match.groups()
    return (
        "if it is a model on the Hugging Face Hub, download it and give the folder: "
        f"hf download {repository} --local-dir {folder}"
    )


def require_files(folder: Path, files: Iterable[Path]) -> None:
    """Check that all of a checkpoint's `files` exist, can be read and are not git-lfs pointers.

    Raises:
        CheckpointError: names every file that is not, and what to do.
    """
    faults, advice = [], []
    for file in files:
        fault = _file_fault(file)
        if fault is not None:
            faults.append(fault[0])
            advice.append(fault[1])
    if faults:
        shown = joined_faults(faults, NUM_FAULTS_SHOWN)
        raise CheckpointError(f"{folder}: {shown}; {', or '.join(dict.fromkeys(advice))}")


def unreadable(path: Path, exc: OSError) -> CheckpointError:
    """The error for a file that exists and cannot be read."""
    return CheckpointError(
        f"{path} cannot be read: {exc.strerror or exc}; check its permissions and the disk"
    )


def _file_fault(path: Path) -> tuple[str, str] | None:
    """What is wrong with the file at `path`, and what to do; None if nothing is."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{path.name} is not a file", COPY_AGAIN
        is_pointer = is_lfs_pointer(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
        if path.is_symlink():
            target = os.readlink(path)
            return f"{path.name} is a link to {target}, which does not exist", COPY_AGAIN
        return f"{path.name} is missing", COPY_AGAIN
    except OSError as exc:
        fault = f"{path.name} cannot be read ({exc.strerror or exc})"
        return fault, "check the permissions and the disk"
    if is_pointer:
        return (
            f"{path.name} is a git-lfs pointer, not the file itself",
            "fetch the files with: git lfs pull",
        )
    return None
