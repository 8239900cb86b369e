"""Published parts in, one checkpoint out, with one tensor in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mod_edge.bundle.staging import check_target, staged_folder
from mod_edge.config import MoDConfig, ModelConfig, config_to_dict
from mod_edge.model.checkpoint import CHECKPOINT, tensor_shapes
from mod_edge.model.checkpoint_writer import DTYPE_NAMES, write_checkpoint
from mod_edge.model.importing.import_plan import ImportPlan, ImportSources, plan_import
from mod_edge.model.weight_files import BLOCK_BYTES, not_finite_fault, raise_not_finite
from mod_edge.progress import OnStep, not_shown


@dataclass(frozen=True)
class ImportReport:
    """The checkpoint that an import wrote.

    Attributes:
        folder: of the checkpoint.
        config: its config.
        size_bytes: of its weights.
        notes: sentences about what was chosen or ignored.
    """

    folder: Path
    config: ModelConfig
    size_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "checkpoint": str(self.folder),
            "config": config_to_dict(self.config),
            "size_bytes": self.size_bytes,
            "notes": list(self.notes),
        }


def import_checkpoint(
    sources: ImportSources,
    folder: Path,
    *,
    mod: MoDConfig | None = None,
    force: bool = False,
    on_step: OnStep = not_shown,
) -> ImportReport:
    """Write the checkpoint of the parts in `sources`; it appears whole or not at all.

    Every tensor keeps the dtype of its file; `ModelConfig.dtype` is that of most of the decoder.

    Args:
        sources: of the parts.
        folder: the folder to write.
        mod: which layers are MoD layers; None for full computation.
        force: replace `folder` if it exists.
        on_step: called with the part that is written, the bytes done and the total bytes.

    Raises:
        CheckpointError: a part cannot be read, parts do not fit each other, or weights are not
            finite numbers.
        ConfigError: what a part computes is not supported, settings contradict each other, or
            `folder` exists or cannot be written.
    """
    check_target(folder, kind=CHECKPOINT, force=force)
    plan = plan_import(sources, mod)
    shapes = tensor_shapes(plan.config)
    assert shapes.keys() == plan.tensors.keys()
    dtypes = {name: tensor.dtype for name, tensor in plan.tensors.items()}
    total = sum(torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items())
    done = 0

    def on_bytes(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        on_step("weights", done, total)

    checked = _FiniteTensors(plan)
    with staged_folder(folder, kind=CHECKPOINT, force=force) as staging:
        write_checkpoint(
            staging, plan.config, plan.tokenizer, checked.read, dtypes=dtypes, on_bytes=on_bytes
        )
        checked.raise_faults()
    return ImportReport(folder, plan.config, total, plan.notes)


class _FiniteTensors:
    """Reads a plan's tensors and notes those with weights that are not finite numbers."""

    def __init__(self, plan: ImportPlan) -> None:
        self._tensors = plan.tensors
        self._faults: dict[Path, list[str]] = {}

    def read(self, name: str) -> Tensor:
        """The tensor of our name."""
        planned = self._tensors[name]
        tensor = planned.read()
        fault = not_finite_fault(planned.name, _blocks(tensor), DTYPE_NAMES[tensor.dtype])
        if fault is not None and planned.file is not None:
            self._faults.setdefault(planned.file, []).append(fault)
        return tensor

    def raise_faults(self) -> None:
        """Raise an error that names every such tensor and the files that have them."""
        files = ", ".join(map(str, self._faults))
        raise_not_finite(files, [fault for faults in self._faults.values() for fault in faults])


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """The tensor's bytes in order, `BLOCK_BYTES` at a time."""
    data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]
