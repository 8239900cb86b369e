"""`mod-edge inspect`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mod_edge.bundle.manifest import MANIFEST_FILE
from mod_edge.commands.arguments import JsonOption, require_extra
from mod_edge.commands.console import (
    out,
    print_json,
    print_pairs,
    print_table,
    printable,
    reports_errors,
    si,
)
from mod_edge.config import MoDConfig
from mod_edge.native.gpu import dotted
from mod_edge.native.trt import NAMES
from mod_edge.plan.costs import Comparison
from mod_edge.plan.inspection import Inspection, inspection_of

if TYPE_CHECKING:
    from mod_edge.bundle.bundle import Bundle
    from mod_edge.model.importing.examination import Examination


@reports_errors
def inspect(
    target: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder, bundle folder, preset name or Hugging Face folder to import."
        ),
    ],
    frames: Annotated[
        int,
        typer.Option(min=1, help="Length of the stream, in frames, over which costs are averaged."),
    ] = 600,
    json: JsonOption = False,
) -> None:
    """Show a model's layers, parameters and cost per frame, next to the full-computation model.

    Of a bundle, also show its target, weights and engines; of a Hugging Face folder, what
    mod-edge import would take.
    """
    if (Path(target) / MANIFEST_FILE).is_file():
        _inspect_bundle(target, frames, as_json=json)  # without PyTorch, which devices do not have
        return
    require_extra("export")
    from mod_edge.model.importing.examination import examine
    from mod_edge.model.importing.source_folder import read_foreign_config
    from mod_edge.model.inspection import config_of

    if read_foreign_config(Path(target)) is not None:
        examination = examine(Path(target))
        if json:
            print_json(examination.to_json())
        else:
            print_examination(examination)
        return
    inspection = inspection_of(target, config_of(target), frames)
    if json:
        print_json({**inspection.to_json(), "bundle": None})
    else:
        print_inspection(inspection)


def _inspect_bundle(folder: str, frames: int, *, as_json: bool) -> None:
    from mod_edge.bundle.bundle import open_bundle

    bundle = open_bundle(folder)
    inspection = inspection_of(folder, bundle.config, frames)
    if as_json:
        print_json({**inspection.to_json(), "bundle": _bundle_to_json(bundle)})
    else:
        print_inspection(inspection, _bundle_rows(bundle))


def print_examination(examination: "Examination") -> None:
    """Print what import takes of a Hugging Face folder, and its config as the checkpoint's."""
    folder = printable(str(examination.folder))
    out.print(
        f"{folder}: {printable(examination.architecture)}, for mod-edge import {examination.option}"
    )
    counts = (f"{si(count, '')} {dtype}" for dtype, count in examination.parameters.items())
    fields = asdict(examination.config)
    rows = [("parameters", ", ".join(counts))]
    rows += [(name, str(value)) for name, value in fields.items() if value is not None]
    print_pairs([*rows, *(("note", printable(note)) for note in examination.notes)])


def print_inspection(inspection: Inspection, bundle_rows: Sequence[tuple[str, str]] = ()) -> None:
    """Print layers, parameters and costs, each cost next to the full-computation model's."""
    config = inspection.config
    text, vision = config.text_config, config.vision_config
    total = si(inspection.parameters["total"], "parameters")
    out.print(f"{printable(inspection.name)}: {total}")
    num_mod = len(config.mod_layers)
    rows = [
        (
            "decoder",
            f"{text.num_hidden_layers} layers of {text.hidden_size}: "
            f"{text.num_hidden_layers - num_mod} dense, {num_mod} MoD",
        ),
        ("routing", _routing(config.mod_config)),
        (
            "vision",
            f"{vision.image_size} pixels, {vision.num_patches} patches, "
            f"{vision.num_hidden_layers} layers of {vision.hidden_size}",
        ),
        (
            "frame",
            f"{config.frame_num_tokens} {'token' if config.frame_num_tokens == 1 else 'tokens'}, "
            f"{config.num_kept} computed in a MoD layer, "
            f"{config.stream_config.frame_fps:g} frames/s",
        ),
    ]
    rows += [
        (f"{part} weights", si(count, ""))
        for part, count in inspection.parameters.items()
        if part != "total"
    ]
    print_pairs([*rows, *bundle_rows])
    out.print()
    cost_rows = [
        *(
            _cost_rows("with the interval token", inspection.with_interval)
            if inspection.with_interval
            else ()
        ),
        *_cost_rows("frame tokens only", inspection.frames_only),
        ("vision FLOPs", si(inspection.vision_flops, ""), si(inspection.vision_flops, ""), "1.000"),
    ]
    header = f"per frame, mean of {inspection.num_frames}"
    print_table((header, "this model", "full computation", "ratio"), cost_rows)


def _bundle_rows(bundle: "Bundle") -> list[tuple[str, str]]:
    lowering, manifest = bundle.lowering, bundle.manifest
    num_layers = bundle.config.text_config.num_hidden_layers
    size = si(manifest.size_bytes, "B")
    rows = [("bundle", f"target {lowering.target}, {lowering.numbers}, {size}")]
    if lowering.capacity is not None:
        rows.append(("window", f"{lowering.capacity.dense} tokens, fixed in the graphs"))
    if not bundle.is_whole:
        layers = ", ".join(map(str, manifest.layers)) or "none"
        rows.append(("decoder layers", f"{layers} (the model has {num_layers})"))
    for built in bundle.engines:
        made = built.settings
        rows.append(
            (
                "engines",
                f"{len(built.engines)} of {len(manifest.graphs)}, "
                f"{NAMES[made.compiler]} {made.version}, "
                f"compute capability {dotted(made.compute_capability)}, profile {made.profile}",
            )
        )
    return rows


def _bundle_to_json(bundle: "Bundle") -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "checkpoint": manifest.checkpoint,
        "lowering": manifest.lowering.to_json(),
        "layers": manifest.layers,
        "size_bytes": manifest.size_bytes,
        "engines": [
            {**asdict(built.settings), "graphs": sorted(built.engines)} for built in bundle.engines
        ],
    }


def _routing(mod: MoDConfig | None) -> str:
    if mod is None:
        return "none: full computation"
    if mod.is_baseline:
        first = f" from layer {mod.exit_layer} on" if mod.insertion == "early_exit" else ""
        return f"none: {mod.insertion}, MoD layers{first} compute no vision token"
    scaling = f", router_scaling {mod.router_scaling}" if mod.selection == "learned" else ""
    return f"{mod.insertion}, {mod.selection}, keep_ratio {mod.keep_ratio:g}{scaling}"


def _cost_rows(title: str, comparison: Comparison) -> list[tuple[str, ...]]:
    model, full = comparison.model, comparison.full
    return [
        (
            f"decoder FLOPs, {title}",
            si(model.flops, ""),
            si(full.flops, ""),
            f"{comparison.flops_ratio:.3f}",
        ),
        (
            f"KV cache (float32), {title}",
            si(model.kv_bytes, "B"),
            si(full.kv_bytes, "B"),
            f"{comparison.kv_ratio:.3f}",
        ),
    ]
