"""The safetensors files of a checkpoint's folder, whoever wrote it: its tensors by name.

Weights are in one file, in several that Hugging Face's index lists, or in files that the caller
names. Links are followed: the Hugging Face Hub's cache is made of them. Buffers that every model
computes itself (`BUFFERS`) are omitted.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mod_edge.config import EMBEDDING_WEIGHT, HEAD_WEIGHT
from mod_edge.document_parser import parse_json
from mod_edge.errors import CheckpointError, joined_faults
from mod_edge.model.checkpoint_folder import (
    COPY_AGAIN,
    NUM_FAULTS_SHOWN,
    require_files,
    unreadable,
)
from mod_edge.native.native_path import native_path

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Weights' dtypes by their names in the files, each with the unsigned integer of its size and its
# exponent bits: all of these are set in infinities and NaN alone (IEEE 754).
FLOAT_DTYPES: Mapping[str, tuple[npt.DTypeLike, int]] = {
    "F32": (np.uint32, 0x7F80_0000),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
}
# Ends of the names of buffers that older versions of transformers wrote: RoPE's frequencies, which
# follow from the config, and the positions 0, 1, 2 ... of a vision tower's patches.
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
BLOCK_BYTES = 2**22  # stays in a processor's cache


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored.

    Attributes:
        shape: its dims.
        dtype: the name in the file, such as "BF16".
        file: that holds it.
        offset: bytes in the file before it.
        size_bytes: of its data.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)} in {self.file.name}"


class WeightFiles:
    """The checked headers of weight files; each tensor is read when it is requested.

    Attributes:
        files: in the order of their names.
        tensors: all tensors but `BUFFERS`, by name.
    """

    def __init__(self, folder: Path, files: Sequence[Path] = ()) -> None:
        """Read the headers of `files`, or of the files that are found in `folder`.

        Raises:
            CheckpointError: files are missing, damaged, unreadable or contradict each other.
        """
        self._folder = folder
        if files:
            require_files(folder, files)
        self.files = list(files) or _chosen_files(folder)
        self.tensors: Mapping[str, StoredTensor] = _stored_tensors(self.files)

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, in the file's dtype, as a view of the mapped file.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        path = self.tensors[name].file
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except SafetensorError as exc:
            raise _damaged(path, exc) from exc
        except OSError as exc:
            raise unreadable(path, exc) from exc

    def require_finite(self, names: Iterable[str]) -> None:
        """Read the tensors `names`, `BLOCK_BYTES` at a time, and check that all are finite numbers.

        Raises:
            CheckpointError: names every tensor with NaN or infinite weights.
        """
        found = ((name, self.tensors[name]) for name in names)
        faults = [not_finite_fault(name, _blocks(stored), stored.dtype) for name, stored in found]
        raise_not_finite(self._folder, [fault for fault in faults if fault])


def not_finite_fault(name: str, blocks: Iterable[memoryview], dtype: str) -> str | None:
    """How many of a tensor's weights are not finite numbers, as a fault; None if all are.

    Args:
        name: of the tensor.
        blocks: its bytes, in blocks of whole weights that stay in a processor's cache.
        dtype: a key of `FLOAT_DTYPES`.
    """
    num_nan = num_infinite = total = 0
    unsigned, exponent = FLOAT_DTYPES[dtype]
    # In numpy: on blocks this small, PyTorch's threads cost more than they save.
    for block in blocks:
        bits: npt.NDArray[np.uint32] = np.frombuffer(block, unsigned)
        total += len(bits)
        num_not_finite = int(np.count_nonzero((bits & exponent) == exponent))
        if num_not_finite:
            infinite = int(np.count_nonzero(bits << 1 == exponent << 1))  # without the sign
            num_infinite += infinite
            num_nan += num_not_finite - infinite
    if not (num_nan or num_infinite):
        return None
    return f"{name!r} ({num_nan} NaN, {num_infinite} infinite of {total})"


def raise_not_finite(place: Path | str, faults: Sequence[str]) -> None:
    """Raise an error for the faults that `not_finite_fault` found in `place`, if any.

    `place` names a folder or files.

    Raises:
        CheckpointError: names every tensor in `faults`.
    """
    if faults:
        raise CheckpointError(
            f"{place}: weights are not finite numbers: {joined_faults(faults, NUM_FAULTS_SHOWN)}; "
            f"the file is damaged or the training diverged: {COPY_AGAIN}, or use an earlier one"
        )


def same_data(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same dims, dtype and bytes, compared a block at a time."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    blocks = zip(_blocks(one), _blocks(other), strict=True)
    return all(ours == theirs for ours, theirs in blocks)


def tied_head_fault(tensors: Mapping[str, StoredTensor]) -> str | None:
    """What is wrong with the head of a model whose config ties it to the embedding.

    Some tools write a tied head as well, which is harmless: a copy of the embedding is dropped.
    """
    head, embedding = tensors.get(HEAD_WEIGHT), tensors.get(EMBEDDING_WEIGHT)
    if head is None or embedding is None or same_data(head, embedding):
        return None
    return (
        f"{HEAD_WEIGHT!r} ({head}) is not the same as {EMBEDDING_WEIGHT!r} ({embedding}), although "
        "tie_word_embeddings is true (set it to false to use this head, or remove the tensor to "
        "use the embedding)"
    )


def _chosen_files(folder: Path) -> list[Path]:
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    has_single = os.path.lexists(single)
    if not os.path.lexists(index):
        shards = sorted(folder.glob("model-*-of-*.safetensors"))
        if shards and not has_single:
            raise CheckpointError(
                f"{folder} has {shards[0].name}, but no {INDEX_FILE}, which lists the files; "
                f"{COPY_AGAIN}"
            )
        files = [single]
    else:
        files = _indexed_files(index)
    if has_single and single not in files:
        _require_same_weights(folder, files)
    require_files(folder, files)
    return files


def _indexed_files(index: Path) -> list[Path]:
    folder = index.parent
    require_files(folder, [index])
    try:
        names = parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    except OSError as exc:
        raise unreadable(index, exc) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(
            f"{index} is not a safetensors index ({exc!r}); {COPY_AGAIN}"
        ) from exc
    # Checked by name, not resolved: a downloaded checkpoint may link into the hub's cache.
    outside = [str(file) for file in files if file.parent != folder]
    if outside:
        raise CheckpointError(
            f"{index} names {', '.join(outside)}, outside the checkpoint's folder; "
            "do not trust this checkpoint"
        )
    return files


def _require_same_weights(folder: Path, indexed: list[Path]) -> None:
    """Check that a single file beside an index has the weights of the files that it lists."""
    single = folder / WEIGHTS_FILE
    missing = [file.name for file in indexed if not os.path.lexists(file)]
    if missing:
        difference = f"no {joined_faults(missing, NUM_FAULTS_SHOWN)}"
    else:
        require_files(folder, [single, *indexed])
        difference = _difference(_stored_tensors([single]), _stored_tensors(indexed))
    if difference:
        raise CheckpointError(
            f"{folder} has both {WEIGHTS_FILE} and {INDEX_FILE}, which lists other weights: "
            f"{difference}; delete {INDEX_FILE} to use {WEIGHTS_FILE}, or delete {WEIGHTS_FILE} "
            "to use the listed files"
        )


def _difference(ours: Mapping[str, StoredTensor], theirs: Mapping[str, StoredTensor]) -> str:
    """The first difference between two sets of tensors; "" if they are the same."""
    if unshared := ours.keys() ^ theirs.keys():
        name = min(unshared)
        return f"only {({**ours, **theirs})[name].file.name} has {name!r}"
    for name, stored in ours.items():
        if not same_data(stored, theirs[name]):
            return f"{name!r} ({stored}) is not the same as {theirs[name]}"
    return ""


def _stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    twice = []
    for file in files:
        header = _header(file)
        both = header.keys() & tensors.keys()
        twice += [f"{name!r} in {tensors[name].file.name} and {file.name}" for name in sorted(both)]
        tensors |= header
    if twice:
        shown = joined_faults(twice, NUM_FAULTS_SHOWN)
        raise CheckpointError(f"tensors are in two files of one checkpoint: {shown}; {COPY_AGAIN}")
    return tensors


def _header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, without `BUFFERS`.

    The library checks the header and the file's size, but does not tell where the data begin. The
    format: eight bytes of header length, a JSON header, the data (safetensors' README).
    """
    try:
        with safe_open(native_path(path), framework="pt"), path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except SafetensorError as exc:
        raise _damaged(path, exc) from exc
    except OSError as exc:
        raise unreadable(path, exc) from exc
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if not f".{name}".endswith(tuple(f".{buffer}" for buffer in BUFFERS)):
            begin, end = entry["data_offsets"]
            offset = 8 + length + begin
            tensors[name] = StoredTensor(
                tuple(entry["shape"]), entry["dtype"], path, offset, end - begin
            )
    return tensors


def _damaged(path: Path, exc: SafetensorError) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or cut off ({exc}); {COPY_AGAIN}")


def _blocks(stored: StoredTensor) -> Iterator[memoryview]:
    """The tensor's bytes in order, `BLOCK_BYTES` at a time; each block is valid until the next.

    Read, not mapped: a bad sector of a mapped file would kill the process (SIGBUS).
    """
    buffer = memoryview(bytearray(min(BLOCK_BYTES, stored.size_bytes)))
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            for start in range(0, stored.size_bytes, BLOCK_BYTES):
                block = buffer[: stored.size_bytes - start]
                if file.readinto(block) < len(block):
                    raise OSError("it has become shorter")
                yield block
    except OSError as exc:
        raise unreadable(stored.file, exc) from exc
