"""Engine manifests: reading, writing, keys, and which engines are up to date."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from mod_edge.bundle.engine_manifest import (
    DOCUMENT,
    EngineManifest,
    EngineRecord,
    EngineSettings,
    build_command,
    engine_fault,
    engine_key,
    read_engine_manifest,
    read_engine_manifests,
    write_engine_manifest,
)
from mod_edge.bundle.manifest import FileRecord, Manifest, file_sha256
from mod_edge.bundle.shape_ranges import StepLimits
from mod_edge.errors import BundleError
from mod_edge.plan.kv_window import Rows
from mod_edge.plan.signature import head_signature, layer_signature, rebase_signature
from mod_edge.plan.targets import Lowering

CAPACITY = Rows(260, 148)
LIMITS = StepLimits(max_step_tokens=64, opt_frames=1, max_frames=2, capacity=CAPACITY)
SETTINGS = EngineSettings(
    target="rtx",
    compiler="tensorrt_rtx",
    version="1.7.1.116",
    compute_capability="89",
    precision="fp16",
    profile="rtx-ada",
    limits=LIMITS,
    workspace_mib=1024,
    builder_optimization_level=3,
)
RECORD = EngineRecord("head.engine", "key", "digest", 6, 0.25)
ENGINES = EngineManifest(SETTINGS, {"head": RECORD})
OTHER = {  # another value for every setting
    "target": "tensorrt",
    "compiler": "tensorrt",
    "version": "1.8",
    "compute_capability": "86",
    "precision": "bf16",
    "profile": "rtx-ampere",
    "limits": replace(LIMITS, capacity=Rows(260, 149)),
    "workspace_mib": 512,
    "builder_optimization_level": 4,
}


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / SETTINGS.folder).mkdir(parents=True)
    write_engine_manifest(ENGINES, tmp_path)
    return tmp_path


def change(bundle, **values):
    """The engine manifest in `bundle` with these top-level values; returns its path."""
    path = bundle / SETTINGS.folder / "manifest.json"
    DOCUMENT.write(path, {**json.loads(path.read_text()), **values})
    return path


# ---- reading and writing ----


def test_a_written_manifest_is_read_back_equal(bundle):
    assert read_engine_manifests(bundle) == [ENGINES]
    assert read_engine_manifest(bundle, SETTINGS) == ENGINES
    assert [path.name for path in (bundle / SETTINGS.folder).iterdir()] == ["manifest.json"]


def test_without_a_build_there_are_no_engines(tmp_path):
    assert read_engine_manifests(tmp_path) == []
    assert read_engine_manifest(tmp_path, SETTINGS) == EngineManifest(SETTINGS, {})


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"settings": {}}, "is damaged"),
        ({"engines": {"head": {"file": "head.engine"}}}, "is damaged"),
        ({"engines": ["head"]}, "is damaged"),
    ],
)
def test_a_damaged_manifest_is_an_error_that_says_what_to_remove(bundle, values, fault):
    path = change(bundle, **values)
    with pytest.raises(BundleError, match=fault) as caught:
        read_engine_manifests(bundle)
    assert str(caught.value).endswith(f"remove {path.parent} and build again")


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("3", "has format 3, this mod-edge reads formats 1 and 2"),
        ("1", "has changed since it was written"),  # format 1 has no digest, this document has
    ],
)
def test_a_manifest_of_another_version_says_what_to_remove(bundle, version, fault):
    path = bundle / SETTINGS.folder / "manifest.json"
    path.write_text(path.read_text().replace('version": 2', f'version": {version}'))
    with pytest.raises(BundleError, match=fault) as caught:
        read_engine_manifests(bundle)
    assert str(caught.value).endswith(f"remove {path.parent} and build again")


def test_engines_of_the_format_without_a_digest_are_read(bundle):
    path = bundle / SETTINGS.folder / "manifest.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    path.write_text(json.dumps(document | {"format_version": 1}, indent=1) + "\n")
    assert read_engine_manifests(bundle) == [ENGINES]


@pytest.mark.parametrize("file", ["../head.engine", "/etc/passwd", "sub/head.engine"])
def test_an_engine_outside_its_folder_is_an_error(bundle, file):
    change(bundle, engines={"head": {**vars(RECORD), "file": file}})
    with pytest.raises(BundleError, match="names a file outside its folder"):
        read_engine_manifests(bundle)


def test_a_folder_with_other_settings_is_an_error(bundle):
    settings = {**json.loads((bundle / SETTINGS.folder / "manifest.json").read_text())["settings"]}
    change(bundle, settings={**settings, "workspace_mib": 1})
    with pytest.raises(BundleError, match="has other settings; remove"):
        read_engine_manifest(bundle, SETTINGS)


# ---- keys ----


def test_every_setting_has_another_value_in_this_file():
    assert OTHER.keys() == {field.name for field in fields(EngineSettings)}


@pytest.mark.parametrize("name", OTHER)
def test_another_setting_makes_another_key_and_folder(name):
    other = replace(SETTINGS, **{name: OTHER[name]})
    assert other.key != SETTINGS.key
    assert other.folder != SETTINGS.folder


@pytest.fixture
def key_of(make_config):
    """`key_of(signature_maker, changed=..., settings=...)`: the key, one file's digest changed."""
    config, lowering = make_config(), Lowering("rtx", "fp16", CAPACITY)

    def key(make, *arguments, changed=None, settings=SETTINGS):
        signature = make(config, *arguments, lowering)
        files = [file for file in (signature.file, signature.data_file) if file]
        files = {file: FileRecord(f"digest of {file}", 1) for file in [*files, "layers/09.data"]}
        if changed is not None:
            files[changed] = FileRecord("other", 1)
        manifest = Manifest({}, lowering, [], {}, files, {})
        return engine_key(manifest, config, signature, settings)

    return key


def test_an_engines_key_depends_on_its_graph_weights_and_settings(key_of):
    key = key_of(head_signature)
    assert key_of(head_signature) == key
    assert key_of(head_signature, changed="head.onnx") != key
    assert key_of(head_signature, changed="head.data") != key
    assert key_of(head_signature, settings=replace(SETTINGS, version="1.8")) != key
    assert key_of(head_signature, changed="layers/09.data") == key


def test_graphs_of_equal_ranges_have_different_keys(key_of):
    assert key_of(layer_signature, 0) != key_of(layer_signature, 2)
    assert key_of(rebase_signature) != key_of(head_signature)


def test_another_recipe_makes_another_key(key_of, monkeypatch):
    key = key_of(head_signature)
    monkeypatch.setattr("mod_edge.bundle.engine_manifest.RECIPE", -1)
    assert key_of(head_signature) != key


# ---- up to date or not ----


@pytest.fixture
def engine(tmp_path):
    """A folder with one engine in it, and its record."""
    path = tmp_path / "head.engine"
    path.write_bytes(b"engine")
    return tmp_path, replace(RECORD, sha256=file_sha256(path))


def test_an_engine_with_its_key_and_bytes_is_up_to_date(engine):
    folder, record = engine
    assert engine_fault(folder, record, "key", hash_all=True) == ""


@pytest.mark.parametrize(
    ("content", "hash_all", "fault"),
    [
        (None, False, "is missing"),
        (b"shorter", False, "is damaged"),
        (b"ENGINE", True, "is damaged"),
        (b"ENGINE", False, ""),
    ],
)
def test_a_changed_file_is_not_up_to_date(engine, content, hash_all, fault):
    folder, record = engine
    (folder / record.file).unlink()
    if content is not None:
        (folder / record.file).write_bytes(content)
    assert engine_fault(folder, record, "key", hash_all=hash_all) == fault


def test_an_engine_with_another_key_or_no_record_is_not_up_to_date(engine):
    folder, record = engine
    assert "another export" in engine_fault(folder, record, "other key", hash_all=True)
    assert engine_fault(folder, None, "key", hash_all=True) == "was not built"


# ---- the build command ----


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "mod-edge build '/a b' --profile rtx-ada --compute-capability 8.9"),
        (
            {"profile": "my own"},
            "mod-edge build '/a b' --profile 'my own.toml' --compute-capability 8.9",
        ),
        (
            {"compiler": "tensorrt", "profile": "jetson-thor"},
            "mod-edge build '/a b' --profile jetson-thor",
        ),
    ],
)
def test_the_build_command_is_complete(changes, command):
    assert build_command(Path("/a b"), replace(SETTINGS, **changes)) == command
