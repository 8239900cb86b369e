"""Bundles: every way to route, parts of a model, and folders that appear whole or not at all."""

import shutil
from dataclasses import replace

import onnx
import pytest
from safetensors.torch import load_file, save_file

from mod_edge.bundle.manifest import BUNDLE, MANIFEST_FILE, check_files, read_manifest
from mod_edge.config import INSERTIONS, read_config
from mod_edge.errors import BundleError, ConfigError, ExportError
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.export.bundle_writer import export_bundle, parse_layers
from mod_edge.export.check import ALLOWED_RELATIVE_ERROR, check_numbers, check_structure
from mod_edge.export.step_io import reference_module
from mod_edge.export.trace import trace, write_graph
from mod_edge.model.checkpoint import Checkpoint, tensor_shapes
from mod_edge.model.presets import random_tensor
from mod_edge.plan.signature import bundle_signatures, layer_signature
from mod_edge.plan.targets import CPU_FP32, Lowering
from mod_edge.runtime.open_session import open_session
from tests.conftest import CAPACITY

pytestmark = pytest.mark.numeric

NUM_LAYERS = 6


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def ops_of(path):
    return {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}


# ---- the tiny bundle ----


def test_the_manifest_lists_every_file_and_every_file_is_as_listed(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    assert set(manifest.files) == names_in(tiny_bundle) - {"manifest.json"}
    check_files(tiny_bundle, manifest, hash_all=True)


def test_every_file_of_a_bundle_is_known_as_the_exporters(tiny_bundle, tiny_config):
    assert BUNDLE.foreign_files(tiny_bundle) == []
    for signature in bundle_signatures(tiny_config, Lowering("rtx", "fp16", CAPACITY)):
        assert all(map(BUNDLE.files.fullmatch, signature.files)), signature.files


def test_force_never_deletes_files_of_the_user(tiny_bundle, tiny_checkpoint, no_tracing, tmp_path):
    old = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (old / "layers" / "notes.txt").write_text("which layers to look at")
    before = names_in(tmp_path)
    with pytest.raises(ConfigError, match=r"delete: layers/notes\.txt; move them away"):
        export_bundle(Checkpoint(tiny_checkpoint), old, force=True)
    assert names_in(tmp_path) == before


def test_the_manifest_says_what_the_bundle_is(tiny_bundle, tiny_checkpoint, tiny_config):
    manifest = read_manifest(tiny_bundle)
    checkpoint = Checkpoint(tiny_checkpoint)
    assert manifest.checkpoint == {"fingerprint": checkpoint.fingerprint(), "name": "checkpoint"}
    assert manifest.lowering == CPU_FP32
    assert manifest.layers == list(range(NUM_LAYERS))
    assert [*manifest.graphs] == ["vision", *(f"layer-0{n}" for n in range(NUM_LAYERS)), "head"]
    assert manifest.tools.keys() >= {"mod-edge", "torch", "onnx", "onnxruntime"}
    for graph in manifest.graphs.values():
        assert 0 < graph.parity["max_relative_error"] < graph.parity["allowed"]
        assert graph.parity["allowed"] == ALLOWED_RELATIVE_ERROR["fp32"]
    signature = layer_signature(tiny_config, 1, CPU_FP32)
    assert manifest.graphs["layer-01"].inputs == [
        [spec.name, spec.dtype, list(spec.dims)] for spec in signature.inputs
    ]


def test_config_and_tokenizer_are_the_checkpoints(tiny_bundle, tiny_checkpoint, tiny_config):
    assert read_config(tiny_bundle / "config.json") == tiny_config
    ours, theirs = (folder / "tokenizer.json" for folder in (tiny_bundle, tiny_checkpoint))
    assert ours.read_bytes() == theirs.read_bytes()


def test_no_file_of_the_bundle_contains_the_paths_it_was_written_in(tiny_bundle, tiny_checkpoint):
    parts = {str(tiny_checkpoint.parent).encode(), b"site-packages", b"mod_edge/"}
    for name in names_in(tiny_bundle):
        content = (tiny_bundle / name).read_bytes()
        assert not [part for part in parts if part in content], name


def test_exporting_twice_gives_the_same_bytes(tiny_bundle, tiny_checkpoint, no_tracing, tmp_path):
    export_bundle(Checkpoint(tiny_checkpoint), tmp_path / "bundle")
    for name in names_in(tiny_bundle) - {MANIFEST_FILE}:
        assert (tmp_path / "bundle" / name).read_bytes() == (tiny_bundle / name).read_bytes(), name
    ours, theirs = (without_parity(folder) for folder in (tmp_path / "bundle", tiny_bundle))
    assert ours == theirs


def without_parity(folder):
    """The manifest without the measured errors, which depend on the machine's kernels."""
    manifest = read_manifest(folder)
    graphs = {name: replace(graph, parity={}) for name, graph in manifest.graphs.items()}
    return replace(manifest, graphs=graphs)


# ---- ways to route ----


@pytest.mark.parametrize("insertion", INSERTIONS)
def test_every_insertion_exports_with_its_mod_layers(
    checkpoint_with, no_tracing, tmp_path, insertion
):
    checkpoint = checkpoint_with(insertion=insertion)
    manifest = export_bundle(checkpoint, tmp_path / "bundle")
    routed = [n for n in range(NUM_LAYERS) if manifest.graphs[f"layer-0{n}"].kind == "mod"]
    assert tuple(routed) == checkpoint.config.mod_layers
    for index in range(NUM_LAYERS):
        ops = ops_of(tmp_path / "bundle" / f"layers/0{index}.onnx")
        assert ("TopK" in ops) == (index in routed)


def test_a_full_computation_model_exports_without_a_mod_layer(
    checkpoint_with, no_tracing, tmp_path
):
    manifest = export_bundle(checkpoint_with(), tmp_path / "bundle")
    assert {graph.kind for graph in manifest.graphs.values()} == {"vision", "dense", "head"}


@pytest.fixture
def tracing_mod_layers_only(monkeypatch, tiny_topologies):
    """Dense graphs do not depend on the routing of other layers, so they are not traced again."""
    monkeypatch.setattr(
        bundle_module,
        "trace",
        lambda config, signature, lowering: (
            trace(config, signature, lowering)
            if signature.kind.is_mod
            else tiny_topologies[signature.kind]
        ),
    )


def test_uniform_selection_exports_without_router_or_topk(
    checkpoint_with, tracing_mod_layers_only, tmp_path
):
    checkpoint = checkpoint_with(selection="uniform", keep_ratio=0.3)
    export_bundle(checkpoint, tmp_path / "bundle", layers=[1])
    path = tmp_path / "bundle" / "layers/01.onnx"
    assert "TopK" not in ops_of(path)
    assert {"Gather", "ScatterND"} <= ops_of(path)
    model = onnx.load(str(path), load_external_data=False)
    assert not [tensor for tensor in model.graph.initializer if "router" in tensor.name]
    signature = layer_signature(checkpoint.config, 1, CPU_FP32)
    with pytest.raises(ExportError, match="it has no TopK"):
        check_structure(path, signature, {}, has_router=True)


@pytest.mark.slow
def test_delta_scaling_exports(checkpoint_with, tracing_mod_layers_only, tmp_path):
    checkpoint = checkpoint_with(router_scaling="delta")
    export_bundle(checkpoint, tmp_path / "bundle", layers=[1])
    assert "TopK" in ops_of(tmp_path / "bundle" / "layers/01.onnx")


def test_a_graph_of_the_other_scaling_is_an_export_error(checkpoint_with, no_tracing, tmp_path):
    # The tiny topology scales the whole output, this checkpoint needs the branch scaled.
    checkpoint = checkpoint_with(router_scaling="delta")
    with pytest.raises(ExportError, match=r"01\.onnx, one frame: new_hidden differs"):
        export_bundle(checkpoint, tmp_path / "bundle", layers=[1])


@pytest.mark.slow
@pytest.mark.parametrize("keep_ratio", [0.1, 1.0])
def test_extreme_keep_ratios_export(checkpoint_with, tracing_mod_layers_only, tmp_path, keep_ratio):
    checkpoint = checkpoint_with(keep_ratio=keep_ratio)
    export_bundle(checkpoint, tmp_path / "bundle", layers=[1])


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [2, 3])
@pytest.mark.parametrize("index", [0, 1], ids=["dense", "mod"])
def test_a_geometry_in_which_no_two_sizes_are_equal_exports(
    make_config, tmp_path, index, num_groups
):
    config = make_config(num_key_value_heads=num_groups)
    signature = layer_signature(config, index, CPU_FP32)
    prefix, shapes = f"model.layers.{index}.", tensor_shapes(config)
    weights = {
        name.removeprefix(prefix): random_tensor(config, name, shape, 0)
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
    path = tmp_path / "layer.onnx"
    topology = trace(config, signature, CPU_FP32)
    write_graph(topology, weights.items(), path)
    check_structure(path, signature, weights, has_router=True)
    dtypes = topology.weight_dtypes
    error = check_numbers(
        path,
        config,
        signature,
        CPU_FP32,
        lambda: reference_module(config, signature.kind, weights.items(), dtypes),
    )
    assert error < ALLOWED_RELATIVE_ERROR["fp32"]


def test_a_router_with_equal_logits_exports(checkpoint_with, no_tracing, tmp_path):
    """All ties: PyTorch and ONNX Runtime keep different tokens, and neither is wrong."""
    folder = checkpoint_with(insertion="interleaved").path
    weights = load_file(folder / "model.safetensors")
    weights = {
        name: tensor.zero_() if "router" in name else tensor for name, tensor in weights.items()
    }
    save_file(weights, folder / "model.safetensors")
    manifest = export_bundle(Checkpoint(folder), tmp_path / "bundle", layers=[1])
    parity = manifest.graphs["layer-01"].parity
    assert parity["max_relative_error"] < parity["allowed"] / 5


# ---- parts of a model ----


def test_some_layers_make_a_bundle_of_those_layers(tiny_checkpoint, no_tracing, tmp_path):
    bundle = tmp_path / "bundle"
    manifest = export_bundle(Checkpoint(tiny_checkpoint), bundle, layers=[1, 0, 1])
    assert manifest.layers == [0, 1]
    assert [*manifest.graphs] == ["vision", "layer-00", "layer-01", "head"]
    assert {name for name in names_in(bundle) if name.startswith("layers/")} == {
        "layers/00.onnx",
        "layers/00.data",
        "layers/01.onnx",
        "layers/01.data",
    }
    assert read_manifest(bundle) == manifest


def test_a_bundle_of_some_layers_cannot_be_run(tiny_checkpoint, no_tracing, tmp_path):
    export_bundle(Checkpoint(tiny_checkpoint), tmp_path / "bundle", layers=[0, 1])
    with pytest.raises(BundleError, match=r"has 2 of 6 layers; .*without --layers"):
        open_session(tmp_path / "bundle")


def test_unknown_layers_are_all_named(tiny_checkpoint, tmp_path):
    with pytest.raises(ExportError, match=r"no layers \[6, 99\] in this model, wanted 0 to 5"):
        export_bundle(Checkpoint(tiny_checkpoint), tmp_path / "bundle", layers=[0, 99, 6])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0", [0]), ("0-1", [0, 1]), ("0,5", [0, 5]), (" 0-1, 5 ", [0, 1, 5]), ("3-3", [3])],
)
def test_layers_are_numbers_and_ranges(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "0,,1", "1.5", "5-2", "0-99999"])
def test_anything_else_is_not_a_list_of_layers(text):
    with pytest.raises(ExportError, match="wanted numbers and ranges like 0-1 or 0,5"):
        parse_layers(text)


# ---- whole or not at all ----


def interrupt_at_the_third_graph(name, *_progress):
    if name == "layer-01":
        raise KeyboardInterrupt


def test_an_interrupted_export_leaves_nothing(tiny_checkpoint, no_tracing, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export_bundle(
            Checkpoint(tiny_checkpoint), tmp_path / "bundle", on_step=interrupt_at_the_third_graph
        )
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_the_old_bundle_as_it_was(
    tiny_bundle, tiny_checkpoint, no_tracing, tmp_path
):
    old = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with pytest.raises(KeyboardInterrupt):
        export_bundle(
            Checkpoint(tiny_checkpoint), old, force=True, on_step=interrupt_at_the_third_graph
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    check_files(old, read_manifest(old), hash_all=True)


def test_an_existing_folder_is_refused_without_force(tiny_checkpoint, no_tracing, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ConfigError, match="exists already; use --force"):
        export_bundle(Checkpoint(tiny_checkpoint), tmp_path / "bundle")
    assert not list((tmp_path / "bundle").iterdir())


def test_force_replaces_an_older_bundle_but_keeps_its_engines(
    tiny_bundle, tiny_checkpoint, no_tracing, tmp_path
):
    old = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (old / "engines").mkdir()
    (old / "engines" / "old.engine").write_bytes(b"built from the older graphs")
    export_bundle(Checkpoint(tiny_checkpoint), old, layers=[0], force=True)
    assert (old / "engines" / "old.engine").read_bytes() == b"built from the older graphs"
    assert not (old / "layers" / "05.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    check_files(old, read_manifest(old), hash_all=True)


@pytest.mark.parametrize("target", [".", ".."])
def test_force_never_replaces_the_checkpoint_itself(tiny_checkpoint, no_tracing, tmp_path, target):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "models" / "checkpoint")
    before = names_in(tmp_path)
    with pytest.raises(ExportError, match="would replace the checkpoint"):
        export_bundle(Checkpoint(checkpoint), checkpoint / target, force=True)
    assert names_in(tmp_path) == before


def test_the_checkpoint_is_only_read(tiny_checkpoint, no_tracing, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    before = Checkpoint(checkpoint).fingerprint()
    export_bundle(Checkpoint(checkpoint), tmp_path / "bundle", layers=[0])
    assert Checkpoint(checkpoint).fingerprint() == before
    assert names_in(checkpoint) == {"config.json", "tokenizer.json", "model.safetensors"}


def test_progress_counts_every_part_once(tiny_checkpoint, no_tracing, tmp_path):
    seen = []
    export_bundle(
        Checkpoint(tiny_checkpoint),
        tmp_path / "bundle",
        layers=[0, 1],
        on_step=lambda *step: seen.append(step),
    )
    names = ["vision", "layer-00", "layer-01", "head", "embedding", "manifest"]
    assert seen == [(name, done, len(names)) for done, name in enumerate(names)]
