"""A checkpoint written as a bundle: graphs, embedding table, tokenizer, config and manifest."""

import re
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from mod_edge.bundle.engine_manifest import ENGINES_FOLDER
from mod_edge.bundle.manifest import (
    BUNDLE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    GraphRecord,
    Manifest,
    record_file,
    write_manifest,
)
from mod_edge.bundle.staging import check_target, staged_folder
from mod_edge.config import EMBEDDING_WEIGHT, ModelConfig, write_config
from mod_edge.errors import ExportError
from mod_edge.export.check import (
    allowed_error,
    check_numbers,
    check_structure,
    quantizing_cost,
)
from mod_edge.export.embedding_table import write_embedding
from mod_edge.export.lower import lower_file
from mod_edge.export.step_io import reference_module
from mod_edge.export.trace import Topology, trace, write_graph
from mod_edge.export.weight_fit import require_fitting_weights
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.native.native_path import native_path
from mod_edge.plan.graph_kind import GraphKind
from mod_edge.plan.signature import GraphSignature, bundle_signatures
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.plan.weight_forms import K_QUANT, WeightForm
from mod_edge.progress import OnStep, not_shown

TOOLS = ("mod-edge", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "onnx_graphsurgeon")


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    *,
    lowering: Lowering = CPU_FP32,
    layers: Sequence[int] | None = None,
    force: bool = False,
    on_step: OnStep = not_shown,
) -> Manifest:
    """Export `checkpoint` as the bundle folder `target`, checking every graph as it is written.

    One graph's weights are in memory at a time. The folder appears whole or not at all.

    Args:
        checkpoint: an open checkpoint.
        target: the folder to write. Engines of a bundle that is replaced are kept, so that `build`
            can reuse those that still fit.
        lowering: what the graphs are for.
        layers: decoder layers to export, None for all; a bundle without all layers cannot be run.
        force: replace `target` if it exists.
        on_step: called with the part that begins, the number of parts done and their total.

    Raises:
        ExportError: an unknown layer, weights that do not fit the format, a graph that
            fails its check, or a target that contains the checkpoint.
        ConfigError: `target` exists and `force` is not given, or its path is not UTF-8.
        CheckpointError: some weights are NaN or infinite.
    """
    config = checkpoint.config
    indices = _checked_layers(config, layers)
    if checkpoint.path.resolve().is_relative_to(target.resolve()):
        raise ExportError(
            f"{target} would replace the checkpoint {checkpoint.path}; choose another folder"
        )
    signatures = bundle_signatures(config, lowering, indices)
    require_fitting_weights(config, lowering, signatures)
    native_path(target)  # before the work: the graphs are checked where they are written
    check_target(target, kind=BUNDLE, force=force)
    checkpoint.require_finite()
    total = len(signatures) + 2
    with staged_folder(target, kind=BUNDLE, force=force, carried=(ENGINES_FOLDER,)) as folder:
        (folder / "layers").mkdir()
        graphs: dict[str, GraphRecord] = {}
        topologies: dict[GraphKind, Topology] = {}
        for done, signature in enumerate(signatures):
            on_step(signature.name, done, total)
            if signature.kind not in topologies:
                topologies[signature.kind] = trace(config, signature, lowering)
            graphs[signature.name] = _export_graph(
                checkpoint, signature, lowering, topologies[signature.kind], folder
            )
        on_step("embedding", total - 2, total)
        write_embedding(checkpoint.tensor(EMBEDDING_WEIGHT), lowering, folder)
        write_config(config, folder / CONFIG_FILE)
        shutil.copyfile(checkpoint.path / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        on_step("manifest", total - 1, total)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = Manifest(
            checkpoint={
                "fingerprint": checkpoint.fingerprint(),
                "name": checkpoint.path.resolve().name,
            },
            lowering=lowering,
            layers=list(indices),
            graphs=graphs,
            files={path.relative_to(folder).as_posix(): record_file(path) for path in files},
            tools={name: import_module(name.replace("-", "_")).__version__ for name in TOOLS},
        )
        write_manifest(manifest, folder)
    return manifest


def _export_graph(
    checkpoint: Checkpoint,
    signature: GraphSignature,
    lowering: Lowering,
    topology: Topology,
    folder: Path,
) -> GraphRecord:
    config, path = checkpoint.config, folder / signature.file
    form = topology.ops.form if topology.ops else None
    codes = write_graph(topology, graph_weights(checkpoint, signature), path)
    if form is not None and form.method != K_QUANT:
        codes.clear()  # quickly computed again, and those of a large head take much memory
    check_structure(path, signature, topology.tensor_names, has_router=config.has_router)

    def make_reference(form: WeightForm | None) -> nn.Module:
        weights = graph_weights(checkpoint, signature)
        return reference_module(
            config, signature.kind, weights, topology.weight_dtypes, form, codes
        )

    # Before lowering: ONNX Runtime does not read attributes that only the target's compiler knows.
    error = check_numbers(path, config, signature, lowering, partial(make_reference, form))
    allowed = allowed_error(signature.kind, lowering).largest
    parity = {"max_relative_error": error, "allowed": allowed}
    if form is not None:
        make_original = partial(make_reference, None)
        parity["cost"] = quantizing_cost(path, config, signature, lowering, make_original)
    lower_file(path, lowering)
    return GraphRecord(
        file=signature.file,
        kind=signature.kind.name,
        opset=lowering.opset,
        inputs=[[spec.name, spec.dtype, list(spec.dims)] for spec in signature.inputs],
        outputs=[[spec.name, spec.dtype, list(spec.dims)] for spec in signature.outputs],
        parity=parity,
        weights=form.to_json() if form else None,
    )


def graph_weights(
    checkpoint: Checkpoint, signature: GraphSignature
) -> Iterator[tuple[str, Tensor]]:
    """The graph's weights, from the checkpoint, under its module's names."""
    for name, tensor in checkpoint.tensors(*signature.weight_prefixes):
        yield signature.weight_name(name), tensor


def _checked_layers(config: ModelConfig, layers: Sequence[int] | None) -> tuple[int, ...]:
    num_layers = config.text_config.num_hidden_layers
    if layers is None:
        return tuple(range(num_layers))
    unknown = sorted(set(layers) - set(range(num_layers)))
    if unknown:
        raise ExportError(
            f"no layers {unknown} in this model, wanted 0 to {num_layers - 1}; correct --layers"
        )
    return tuple(sorted(set(layers)))


def parse_layers(text: str) -> list[int]:
    """Layer indices of a list of numbers and ranges: "0-1,5" is 0, 1 and 5.

    Raises:
        ExportError: `text` is not such a list.
    """
    layers: list[int] = []
    for part in text.split(","):
        # Four digits at most: no model has more layers, and a longer range would fill the memory.
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        indices = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not indices:
            raise ExportError(f"--layers {text!r}: wanted numbers and ranges like 0-1 or 0,5")
        layers += indices
    return layers
