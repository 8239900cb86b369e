"""Whether a folder's tensors are those that its config.json describes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import NUM_FAULTS_SHOWN
from mod_edge.model.weight_files import StoredTensor


def misfits(
    tensors: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    is_ignored: Callable[[str], bool],
) -> list[str]:
    """One fault for each unknown or misshapen tensor.

    Args:
        tensors: of the folder, by the files' names.
        shapes: of the tensors that config.json describes, by the same names.
        is_ignored: whether a tensor of this name may be there although it is not described.
    """
    faults = []
    for name, stored in tensors.items():
        wanted = shapes.get(name)
        if wanted is None and not is_ignored(name):
            faults.append(f"unknown tensor {name!r} ({stored})")
        elif wanted is not None and stored.shape != wanted:
            faults.append(f"{name!r} is {stored}, config.json wants {list(wanted)}")
    return faults


def raise_misfits(folder: Path, faults: Sequence[str], *, advice: str) -> None:
    """Raise an error that names all `faults` of the tensors in `folder`, if there are any.

    Args:
        folder: of the tensors.
        faults: what is wrong, a clause each.
        advice: what the user can do about them.

    Raises:
        CheckpointError: there are.
    """
    if faults:
        raise CheckpointError(
            f"{folder}: tensors do not fit config.json: "
            f"{joined_faults(sorted(faults), NUM_FAULTS_SHOWN)}; {advice}"
        )
