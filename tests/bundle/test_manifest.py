"""A bundle's manifest: reading, writing, and every way in which a folder can differ from it."""

import json
import os

import pytest

from mod_edge.bundle import manifest as manifest_module
from mod_edge.bundle.manifest import (
    DOCUMENT,
    FORMAT_VERSION,
    MANIFEST_FILE,
    GraphRecord,
    Manifest,
    check_files,
    file_sha256,
    read_manifest,
    record_file,
    write_manifest,
)
from mod_edge.errors import BundleError
from mod_edge.plan.targets import CPU_FP32

CONTENTS = {"vision.onnx": b"vision graph", "layers/00.onnx": b"layer", "config.json": b"{}"}


@pytest.fixture
def bundle(tmp_path):
    """A folder of three files and their manifest."""
    folder = tmp_path / "bundle"
    (folder / "layers").mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    graph = GraphRecord(
        file="vision.onnx",
        kind="vision",
        opset=20,
        inputs=[["frames", "uint8", ["F", 64, 64, 3]]],
        outputs=[["frame_embeds", "float32", ["F", 10, 96]]],
        parity={"max_relative_error": 1e-6, "allowed": 1e-4},
    )
    manifest = Manifest(
        checkpoint={"fingerprint": "0" * 64, "name": "tiny"},
        lowering=CPU_FP32,
        layers=[0],
        graphs={"vision": graph},
        files={name: record_file(folder / name) for name in CONTENTS},
        tools={"torch": "2.13.0"},
    )
    write_manifest(manifest, folder)
    return folder


def change(bundle, **fields):
    """Write other values into the manifest, as a program of ours would: with its digest."""
    path = bundle / MANIFEST_FILE
    DOCUMENT.write(path, {**json.loads(path.read_text()), **fields})


def check(bundle, *, hash_all=True):
    check_files(bundle, read_manifest(bundle), hash_all=hash_all)


def test_a_written_manifest_reads_back_equal(bundle, tmp_path):
    manifest = read_manifest(bundle)
    assert json.loads((bundle / MANIFEST_FILE).read_text())["format_version"] == FORMAT_VERSION
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / MANIFEST_FILE).read_bytes() == (bundle / MANIFEST_FILE).read_bytes()


def test_a_bundle_of_the_format_without_a_digest_is_read(bundle):
    path = bundle / MANIFEST_FILE
    manifest, document = read_manifest(bundle), json.loads(path.read_text())
    del document["sha256"]
    path.write_text(json.dumps(document | {"format_version": 2}, indent=1) + "\n")
    assert read_manifest(bundle) == manifest
    check(bundle)


def test_an_edited_manifest_is_an_error_with_what_to_do(bundle):
    path = bundle / MANIFEST_FILE
    path.write_text(path.read_text().replace('"torch": "2.13.0"', '"torch": "2.13.1"'))
    says = r"has changed since it was written .* restore it, or export the checkpoint again"
    with pytest.raises(BundleError, match=says):
        read_manifest(bundle)


def test_an_unchanged_bundle_passes(bundle):
    check(bundle, hash_all=True)
    check(bundle, hash_all=False)


def test_the_hash_is_sha256_over_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "READ_BYTES", 3)
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2's own example
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == sha256
    path.write_bytes(b"abcabc")
    assert file_sha256(path) != sha256


def test_a_changed_byte_is_found(bundle):
    (bundle / "layers" / "00.onnx").write_bytes(b"lay3r")
    with pytest.raises(BundleError, match=r"layers/00\.onnx has changed since it was exported"):
        check(bundle)


def test_a_file_that_git_lfs_did_not_fetch_is_named_as_that(bundle):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:7ef9\nsize 12\n"
    (bundle / "vision.onnx").write_text(pointer)
    with pytest.raises(BundleError, match=r"vision\.onnx is a git-lfs pointer.*git lfs pull"):
        check(bundle)


def test_every_damaged_file_is_named_at_once(bundle):
    (bundle / "vision.onnx").unlink()
    (bundle / "layers" / "00.onnx").write_bytes(b"layer and more")
    (bundle / "config.json").write_bytes(b"[]")
    with pytest.raises(BundleError) as caught:
        check(bundle)
    message = str(caught.value)
    assert "vision.onnx is missing" in message
    assert "layers/00.onnx has 14 bytes, wanted 5" in message
    assert "config.json has changed" in message
    assert "copy or export it again" in message


def test_large_files_are_hashed_only_when_all_are(bundle, monkeypatch):
    monkeypatch.setattr(manifest_module, "SMALL_FILE_BYTES", 10)
    (bundle / "vision.onnx").write_bytes(b"Vision graph")  # 12 bytes as before
    check(bundle, hash_all=False)
    with pytest.raises(BundleError, match=r"vision\.onnx has changed"):
        check(bundle, hash_all=True)
    (bundle / "config.json").write_bytes(b"[]")  # small: always hashed
    with pytest.raises(BundleError, match=r"config\.json has changed"):
        check(bundle, hash_all=False)


def test_the_size_of_a_large_file_is_always_checked(bundle, monkeypatch):
    monkeypatch.setattr(manifest_module, "SMALL_FILE_BYTES", 10)
    (bundle / "vision.onnx").write_bytes(b"vision grap")
    with pytest.raises(BundleError, match=r"vision\.onnx has 11 bytes, wanted 12"):
        check(bundle, hash_all=False)


def test_a_folder_without_a_manifest_is_an_error_with_the_export_command(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"is not a bundle \(no manifest\.json\).*mod-edge e"):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("version", "advice"), [(FORMAT_VERSION + 1, "upgrade"), (1, "export the checkpoint again")]
)
def test_another_format_is_an_error_with_what_to_do(bundle, version, advice):
    path = bundle / MANIFEST_FILE
    document = json.loads(path.read_text()) | {"format_version": version, "something_new": 1}
    path.write_text(json.dumps(document))
    says = f"has format {version}, this mod-edge reads formats 2, 3 and 4; {advice}"
    with pytest.raises(BundleError, match=says):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "fields",
    [
        {"files": []},
        {"files": {"a": {"sha256": "0"}}},
        {"files": {"a": None}},
        {"graphs": {"vision": {"file": "vision.onnx"}}},
        {"graphs": 1},
        {"unknown_field": 1},
        {
            "graphs": {
                "vision": {
                    **{"file": 7, "kind": "vision", "opset": 20},
                    **{"inputs": [], "outputs": [], "parity": {}},
                }
            }
        },
    ],
)
def test_a_manifest_of_another_shape_is_an_error(bundle, fields):
    change(bundle, **fields)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged .*export the checkpoint ag"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "layers/../../secret", "/etc/hostname", "layers\\..\\..\\secret", "a\0b"]
)
def test_a_file_outside_the_folder_is_an_error(bundle, name):
    change(bundle, files={name: {"sha256": "0" * 64, "size_bytes": 1}})
    with pytest.raises(BundleError, match="is outside the bundle's folder; do not trust"):
        read_manifest(bundle)


def test_a_graph_outside_the_folder_is_an_error(bundle):
    graphs = json.loads((bundle / MANIFEST_FILE).read_text())["graphs"]
    graphs["vision"]["file"] = "../vision.onnx"
    change(bundle, graphs=graphs)
    with pytest.raises(BundleError, match=r"'\.\./vision\.onnx', which is outside the bundle's"):
        read_manifest(bundle)


@pytest.mark.parametrize("linked", ["vision.onnx", "layers"])
def test_a_link_to_the_outside_is_an_error(bundle, tmp_path, linked):
    outside = tmp_path / "outside"
    (bundle / linked).rename(outside)
    os.symlink(outside, bundle / linked)
    with pytest.raises(BundleError, match="is outside the bundle's folder"):
        read_manifest(bundle)


def test_a_link_to_a_bundle_can_be_read(bundle, tmp_path):
    os.symlink(bundle, tmp_path / "link")
    check(tmp_path / "link")


def laid_out_as_the_hub_cache(bundle, cache, name="."):
    """The bundle as a repository in the Hugging Face Hub's cache, in the repository's `name`."""
    blobs, folder = cache / "blobs", cache / "snapshots" / "0a1b2c" / name
    blobs.mkdir(parents=True)
    for path in [path for path in bundle.rglob("*") if path.is_file()]:
        link = folder / path.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / file_sha256(path)
        path.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


@pytest.mark.parametrize("name", [".", "exported/cpu"])
def test_a_bundle_in_the_hubs_cache_can_be_read(bundle, tmp_path, name):
    check(laid_out_as_the_hub_cache(bundle, tmp_path / "models--owner--name", name))


def test_a_link_out_of_the_hubs_cache_is_an_error(bundle, tmp_path):
    folder = laid_out_as_the_hub_cache(bundle, tmp_path / "models--owner--name")
    for outside in (tmp_path / "secret", tmp_path / "models--owner--name" / "refs"):
        (folder / "vision.onnx").unlink()
        (folder / "vision.onnx").symlink_to(outside)
        with pytest.raises(BundleError, match="is outside the bundle's folder; do not trust"):
            read_manifest(folder)


def test_a_manifest_in_the_hubs_cache_may_not_name_the_blobs_themselves(bundle, tmp_path):
    name = f"../../blobs/{file_sha256(bundle / 'vision.onnx')}"
    change(bundle, files={name: {"sha256": "0" * 64, "size_bytes": 1}})
    folder = laid_out_as_the_hub_cache(bundle, tmp_path / "models--owner--name")
    with pytest.raises(BundleError, match="is outside the bundle's folder; do not trust"):
        read_manifest(folder)


def test_a_cycle_of_links_is_an_error(bundle):
    (bundle / "vision.onnx").unlink()
    os.symlink("vision.onnx", bundle / "vision.onnx")
    with pytest.raises(BundleError, match=r"vision\.onnx"):
        check(bundle)
