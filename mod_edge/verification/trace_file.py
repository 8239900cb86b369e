"""A stream's trace as one .npz file, for comparisons on a device without PyTorch.

Entry `calls` is JSON: the trace's settings, and the calls in order without their arrays. An array
of call number n is the entry `n.frames`, `n.logits`, `n.kept.<layer>` or `n.router.<layer>`.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mod_edge.bundle.versioned_json import SHAPE_ERRORS
from mod_edge.document_parser import parse_json
from mod_edge.errors import BundleError
from mod_edge.plan.kv_window import Eviction, Rows
from mod_edge.verification.recording import (
    Arrays,
    Call,
    EncodeCall,
    EvictCall,
    ReadCall,
    StepCall,
    StreamTrace,
)


def write_trace(trace: StreamTrace, path: Path) -> None:
    """Write `trace`; `path` ends in .npz."""
    arrays: Arrays = {}
    calls = [_call_to_json(number, call, arrays) for number, call in enumerate(trace.calls)]
    document = {
        "calls": calls,
        "capacity": trace.capacity,
        "max_step_tokens": trace.max_step_tokens,
        "frames_per_step": trace.frames_per_step,
        "threshold": trace.threshold,
    }
    entries: dict[str, Any] = {"calls": np.array(json.dumps(document)), **arrays}
    with path.open("wb") as file:
        np.savez(file, **entries)


def read_trace(path: Path) -> StreamTrace:
    """The trace in the file at `path`.

    Raises:
        BundleError: it is damaged.
    """
    try:
        # Opened here, because numpy does not close a file that is not an archive.
        with path.open("rb") as file, np.load(file) as arrays:
            document = parse_json(str(arrays["calls"]))
            names = _names_by_number(arrays.files)
            calls = [
                _call_from_json(call, {key: arrays[name] for key, name in names.get(number, ())})
                for number, call in enumerate(document.pop("calls"))
            ]
        return StreamTrace(calls=tuple(calls), capacity=Rows(*document.pop("capacity")), **document)
    except (OSError, *SHAPE_ERRORS, zipfile.BadZipFile) as exc:
        raise BundleError(
            f"{path} is damaged ({exc!r}); save or copy the golden files again"
        ) from exc


def _names_by_number(names: list[str]) -> dict[int, list[tuple[str, str]]]:
    """By number of the call, the key of each of its arrays and the array's name."""
    found: dict[int, list[tuple[str, str]]] = {}
    for name in names:
        number, _, key = name.partition(".")
        if key:
            found.setdefault(int(number), []).append((key, name))
    return found


def _call_to_json(number: int, call: Call, arrays: Arrays) -> dict[str, Any]:
    if isinstance(call, EncodeCall):
        arrays[f"{number}.frames"] = call.frames
        return {"call": "encode"}
    if isinstance(call, ReadCall):
        arrays[f"{number}.logits"] = call.logits
        return {"call": "read", "rows": call.rows}
    if isinstance(call, EvictCall):
        return {"call": "evict", **vars(call.eviction)}
    for layer, kept in call.kept.items():
        arrays[f"{number}.kept.{layer}"] = kept
    for layer, logits in call.router_logits.items():
        arrays[f"{number}.router.{layer}"] = logits
    fields = ("pieces", "token_ids", "first_frame", "position", "past")
    return {"call": "step", **{name: getattr(call, name) for name in fields}}


def _call_from_json(document: dict[str, Any], arrays: Arrays) -> Call:
    kind = document.pop("call")
    if kind == "encode":
        return EncodeCall(arrays["frames"])
    if kind == "read":
        return ReadCall(tuple(document["rows"]), arrays["logits"])
    if kind == "evict":
        num_evicted = document.pop("num_evicted")
        rows = {name: Rows(*value) for name, value in document.items()}
        return EvictCall(Eviction(**rows, num_evicted=num_evicted))
    return StepCall(
        pieces=tuple(document["pieces"]),
        token_ids=tuple(document["token_ids"]),
        first_frame=document["first_frame"],
        position=document["position"],
        past=Rows(*document["past"]),
        kept=_by_layer(arrays, "kept."),
        router_logits=_by_layer(arrays, "router."),
    )


def _by_layer(arrays: Arrays, prefix: str) -> dict[int, Any]:
    return {
        int(key.removeprefix(prefix)): array
        for key, array in arrays.items()
        if key.startswith(prefix)
    }
