"""Engines of a whole bundle: what is built, what stays fresh, what is refused before it starts.

The compiler is the real one, except in tests of the order of events, which use a stand-in.
"""

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.engine_manifest import read_engine_manifests
from mod_edge.bundle.manifest import CONFIG_FILE, file_sha256, read_manifest, write_manifest
from mod_edge.config import read_config
from mod_edge.errors import BackendError, BundleError, ConfigError
from mod_edge.export import engines as engine_module
from mod_edge.export.compiler import Compiled
from mod_edge.export.engines import build_engines
from mod_edge.native import trt
from mod_edge.native.gpu import Gpu
from mod_edge.plan.kv_budget import plan_window
from mod_edge.plan.protocol import text_minimum
from mod_edge.plan.signature import bundle_signatures
from mod_edge.plan.targets import Lowering
from mod_edge.profiles import load_profile
from tests.conftest import CAPACITY

pytest.importorskip("tensorrt_rtx")

ADA, NANO = load_profile("rtx-ada"), load_profile("jetson-orin-nano")
GRAPHS = ["vision", *(f"layer-0{index}" for index in range(6)), "head", "rebase"]
LARGEST = "vision"  # of the tiny graphs


def build(folder, profile=ADA, **options):
    bundle = open_bundle(folder, hash_all=True)
    return build_engines(bundle, profile, compute_capability="89", **options)


def built_names(report):
    return [graph.name for graph in report.graphs if graph.is_built]


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def built(built_bundle, tmp_path):
    """A copy of the bundle with all engines."""
    return shutil.copytree(built_bundle, tmp_path / "bundle")


@pytest.fixture
def unbuilt(bundle_for, tmp_path):
    """A copy of the bundle without engines."""
    return shutil.copytree(bundle_for("rtx", "fp16"), tmp_path / "bundle")


@pytest.fixture
def compiled(monkeypatch):
    """A stand-in for the compiler; a list of the graphs compiled, with the timing cache given."""
    calls = []

    def compile_graph(_tensorrt, path, signature, _profiles, _settings, *, timing_cache):
        calls.append((signature.name, timing_cache))
        number = str(len(calls)).encode()
        plan = b"engine of " + file_sha256(path).encode()
        return Compiled(plan, (f"warning {len(calls)}",), b"timings " + number)

    monkeypatch.setattr(engine_module, "compile_graph", compile_graph)
    return calls


# ---- built and fresh ----


def test_every_graph_has_an_engine_that_matches_its_record(built):
    (engines,) = read_engine_manifests(built)
    folder = built / engines.settings.folder
    assert list(engines.engines) == GRAPHS
    for record in engines.engines.values():
        path = folder / record.file
        assert (path.stat().st_size, file_sha256(path)) == (record.size_bytes, record.sha256)
        assert record.build_s > 0
    assert sorted(files_in(folder)) == sorted(
        ["manifest.json", *(f"{name}.engine" for name in GRAPHS)]
    )
    assert engines.settings.compute_capability == "89"
    assert engines.settings.limits.capacity == CAPACITY


def test_every_graph_compiles_for_another_gpu_in_a_folder_of_its_own(built):
    (before,) = (built / "engines").iterdir()
    files = files_in(before)
    report = build_engines(open_bundle(built), ADA, compute_capability="86")
    assert built_names(report) == GRAPHS
    assert [graph.warnings for graph in report.graphs] == [()] * len(GRAPHS)
    assert report.settings.compute_capability == "86"
    assert report.folder != before
    assert files_in(before) == files
    assert len(read_engine_manifests(built)) == 2


def test_building_again_compiles_nothing_and_changes_nothing(built, compiled):
    (folder,) = (built / "engines").iterdir()
    files = files_in(folder)
    report = build(built)
    assert (report.num_built, report.num_fresh) == (0, len(GRAPHS))
    assert compiled == []
    assert files_in(folder) == files
    assert report.size_bytes == sum(
        len(data) for name, data in files.items() if name.endswith(".engine")
    )


def test_one_changed_byte_of_one_weight_is_one_engine_built(
    built, tiny_checkpoint, export_tiny, tmp_path
):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    weights[name][0, 0] += 0.25
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    export_tiny(checkpoint, built, Lowering("rtx", "fp16", CAPACITY), force=True)
    report = build(built)
    assert built_names(report) == ["layer-03"]
    assert report.num_fresh == len(GRAPHS) - 1


def test_another_profile_is_another_folder(built, compiled):
    report = build(built, replace(ADA, workspace_mib=ADA.workspace_mib + 1))
    assert built_names(report) == GRAPHS
    assert len(list((built / "engines").iterdir())) == 2


@pytest.mark.parametrize("change", ["missing", "changed", "shorter"])
def test_a_changed_engine_file_is_built_again(built, compiled, change):
    (folder,) = (built / "engines").iterdir()
    path = folder / "layer-02.engine"
    data = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(data[:-1] + (b"\0" if change == "changed" and data[-1:] != b"\0" else b""))
    assert built_names(build(built)) == ["layer-02"]


def test_force_builds_all_again_and_ignores_a_damaged_manifest(built, compiled):
    (folder,) = (built / "engines").iterdir()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=f"remove {folder} and build again"):
        build(built)
    assert built_names(build(built, force=True)) == GRAPHS
    assert built_names(build(built)) == []


def test_the_report_is_json(built):
    document = json.loads(json.dumps(build(built).to_json()))
    assert document["num_fresh"] == len(GRAPHS)
    assert document["num_built"] == 0
    assert document["settings"]["limits"]["capacity"] == list(CAPACITY)
    assert [graph["name"] for graph in document["graphs"]] == GRAPHS
    assert document["peak_memory_bytes"] > 2**20


# ---- the order of events ----


def test_progress_names_each_graph_as_it_begins_and_only_rises(unbuilt, compiled):
    steps = []
    build(unbuilt, on_step=lambda *step: steps.append(step))
    names, done, totals = zip(*steps, strict=True)
    assert list(names) == GRAPHS
    assert done[0] == 0
    assert list(done) == sorted(done)
    assert done[-1] < totals[-1]
    assert len(set(totals)) == 1


def test_an_interruption_leaves_finished_engines_fresh_and_no_partial_file(unbuilt, compiled):
    def interrupt(name, _done, _total):
        if name == "layer-01":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(unbuilt, on_step=interrupt)
    (engines,) = read_engine_manifests(unbuilt)
    assert list(engines.engines) == ["vision", "layer-00"]
    assert not list(unbuilt.rglob("*.new"))
    assert built_names(build(unbuilt)) == GRAPHS[2:]


def test_an_interrupted_build_by_force_keeps_the_engines_that_it_did_not_reach(built, compiled):
    def interrupt(name, _done, _total):
        if name == "layer-01":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(built, force=True, on_step=interrupt)
    assert built_names(build(built)) == []


def test_a_full_disk_leaves_no_partial_file(unbuilt, compiled, monkeypatch):
    def fails(_self, _target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", fails)
        with pytest.raises(OSError, match="No space left"):
            build(unbuilt)
    assert not [path for path in (unbuilt / "engines").rglob("*") if path.is_file()]
    assert built_names(build(unbuilt)) == GRAPHS


def test_a_bundle_of_some_layers_gets_the_engines_of_its_graphs(unbuilt, compiled):
    manifest = read_manifest(unbuilt)
    write_manifest(replace(manifest, layers=[1]), unbuilt)
    assert built_names(build(unbuilt)) == ["vision", "layer-01", "head", "rebase"]


def test_the_compilers_warnings_are_in_the_report(unbuilt, compiled):
    assert build(unbuilt).graphs[1].warnings == ("warning 2",)


# ---- TensorRT itself ----


@pytest.fixture
def orin(monkeypatch):
    """A machine with TensorRT 10.3 and its GPU."""
    network = type("INetworkDefinition", (), {})
    api = type("tensorrt", (), {"INetworkDefinition": network})
    tensorrt = trt.TensorRT("tensorrt", api, "10.3.0.30", trt.Log(), None)
    monkeypatch.setattr(engine_module, "load", lambda compiler: {"tensorrt": tensorrt}[compiler])
    monkeypatch.setattr(
        "mod_edge.export.compute_capability.find_gpu", lambda: Gpu("Orin", "87", 8 * 2**30, "12.6")
    )


@pytest.fixture
def delta(bundle_for, tmp_path):
    return shutil.copytree(bundle_for("tensorrt-delta", "fp16"), tmp_path / "delta")


def test_tensorrts_timing_cache_is_passed_from_graph_to_graph_and_from_build_to_build(
    orin, delta, compiled
):
    bundle = open_bundle(delta)
    report = build_engines(bundle, NANO)
    assert report.settings.compute_capability == "87"
    caches = [timing_cache for _, timing_cache in compiled]
    assert caches[0] == b""
    assert caches[1:] == [f"timings {number}".encode() for number in range(1, len(GRAPHS))]
    assert (report.folder / "timing.cache").read_bytes() == f"timings {len(GRAPHS)}".encode()
    build_engines(bundle, NANO, force=True)
    assert compiled[len(GRAPHS)][1] == f"timings {len(GRAPHS)}".encode()


@pytest.mark.parametrize("window", ["300", NANO.window])
def test_delta_engines_are_for_the_window_that_run_plans(orin, delta, compiled, window):
    bundle, profile = open_bundle(delta), replace(NANO, window=window)
    config = bundle.config
    least_text = text_minimum(config.stream_config, bundle.tokenizer, profile.max_new_tokens)
    plan = plan_window(config, window, least_text, dtype="float16")
    report = build_engines(bundle, profile)
    assert report.settings.limits.capacity == plan.capacity


def test_a_window_too_small_for_delta_graphs_is_refused(orin, delta, compiled):
    with pytest.raises(ConfigError, match="window=20 is too small"):
        build_engines(open_bundle(delta), replace(NANO, window="20"))
    assert compiled == []


def test_a_tensorrt_without_cache_ops_names_the_target_without_them(orin, unbuilt):
    manifest = read_manifest(unbuilt)
    write_manifest(replace(manifest, lowering=Lowering("tensorrt", "fp16", CAPACITY)), unbuilt)
    with pytest.raises(BackendError, match=r"10\.3\.0\.30 lacks .*--target tensorrt-delta"):
        build_engines(open_bundle(unbuilt), load_profile("jetson-thor"))


# ---- refused before it starts ----


def test_a_bundle_for_onnx_runtime_is_refused(tiny_bundle):
    with pytest.raises(BundleError, match=r"has no engines; .* one of rtx, tensorrt, tensorrt-d"):
        build(tiny_bundle)


def test_a_profile_for_another_target_is_refused(unbuilt):
    with pytest.raises(ConfigError, match=r"'jetson-thor' is for .*, bundle .* for rtx"):
        build(unbuilt, load_profile("jetson-thor"))


def test_too_little_disk_is_refused_with_what_is_needed_and_free(unbuilt, compiled, monkeypatch):
    usage = shutil.disk_usage(unbuilt)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**26))
    with pytest.raises(BackendError, match=r"9 engines need about 146 MiB .*, 64 MiB are free"):
        build(unbuilt)
    assert compiled == []


def test_too_little_memory_is_refused_with_the_graph_that_needs_it(
    unbuilt, compiled, monkeypatch, tmp_path
):
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 8000000 kB\nMemAvailable:  300000 kB\nSwapFree:  100000 kB\n")
    monkeypatch.setattr(engine_module, "MEMORY_INFO", memory)
    with pytest.raises(BackendError, match=rf"compiling {LARGEST} needs about 51\d MiB .* 391 MiB"):
        build(unbuilt)
    memory.write_text("MemTotal: 8000000 kB\nMemAvailable:  300000 kB\nSwapFree:  900000 kB\n")
    assert built_names(build(unbuilt)) == GRAPHS


def test_a_system_that_does_not_report_its_memory_is_not_checked(unbuilt, compiled, monkeypatch):
    monkeypatch.setattr(engine_module, "MEMORY_INFO", unbuilt / "none")
    assert built_names(build(unbuilt)) == GRAPHS


def test_fresh_engines_need_no_room(built, monkeypatch):
    usage = shutil.disk_usage(built)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert build(built).num_fresh == len(GRAPHS)


def test_the_estimates_cover_the_tiny_engines(built):
    config = read_config(built / CONFIG_FILE)
    manifest = read_manifest(built)
    (engines,) = read_engine_manifests(built)
    for signature in bundle_signatures(config, manifest.lowering):
        files = [file for file in (signature.file, signature.data_file) if file]
        graph_bytes = sum(manifest.files[file].size_bytes for file in files)
        needed = engines.engines[signature.name].size_bytes
        assert needed <= graph_bytes + engine_module.KERNEL_BYTES, signature.name
