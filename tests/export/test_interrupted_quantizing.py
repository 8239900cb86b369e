"""A quantized export that fails or is interrupted leaves no files and keeps the older bundle."""

import shutil
import tempfile
from dataclasses import replace

import pytest

from mod_edge.bundle.disk_full import full_disk_line
from mod_edge.bundle.manifest import check_files, read_manifest
from mod_edge.errors import ExportError
from mod_edge.export import bundle_writer as bundle_module
from mod_edge.export import embedding_table, trace
from mod_edge.export.bundle_writer import export_bundle
from mod_edge.export.quantized_ops import RowInt8
from mod_edge.model.checkpoint import Checkpoint
from mod_edge.model.presets import write_random_checkpoint
from mod_edge.plan.targets import Lowering
from mod_edge.progress import not_shown

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("no_tracing")]

FORMATS = ("int8", "int4")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that has to be the same after the test; temporary files are made in it too."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.iterdir())


@pytest.fixture
def older_bundle(place, tiny_bundle):
    """A bundle in `place`, which has to be the same after the test."""
    bundle = shutil.copytree(tiny_bundle, place / "bundle")
    yield bundle
    check_files(bundle, read_manifest(bundle), hash_all=True)
    shutil.rmtree(bundle)


def export(checkpoint, bundle, weights, on_step=not_shown):
    lowering = Lowering("cpu", "fp32", weight_format=weights)
    opened = Checkpoint(checkpoint)
    export_bundle(opened, bundle, lowering=lowering, layers=[1], force=True, on_step=on_step)


def interrupted(call, wanted):
    """`call`, with a Ctrl-C in every call whose first argument satisfies `wanted`."""

    def called(first, *others, **options):
        if wanted(first):
            raise KeyboardInterrupt
        return call(first, *others, **options)

    return called


WEIGHTS = pytest.param(trace, "weight_codes", lambda name: "down_proj" in name, id="weights")
CHECK = pytest.param(bundle_module, "quantizing_cost", lambda path: path.stem == "01", id="check")
EMBEDDING = pytest.param(embedding_table, "weight_codes", lambda _: True, id="embedding")


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("module", "name", "wanted"), [WEIGHTS, CHECK])
def test_an_interrupted_export_leaves_nothing(
    tiny_checkpoint, place, monkeypatch, weights, module, name, wanted
):
    monkeypatch.setattr(module, name, interrupted(getattr(module, name), wanted))
    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, place / "bundle", weights)


@pytest.mark.parametrize(("module", "name", "wanted"), [WEIGHTS, CHECK, EMBEDDING])
def test_an_interrupted_export_leaves_the_older_bundle(
    tiny_checkpoint, older_bundle, monkeypatch, module, name, wanted
):
    monkeypatch.setattr(module, name, interrupted(getattr(module, name), wanted))
    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, older_bundle, "int8")


@pytest.fixture
def limit_files():
    """`limit_files(size_bytes)`: no file can grow beyond it, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A layer's codes take 150 kB or more, the embedding's 49 kB.
@pytest.mark.parametrize(("step", "size_bytes"), [("layer-01", 100_000), ("embedding", 30_000)])
def test_a_full_disk_leaves_the_older_bundle(
    tiny_checkpoint, older_bundle, limit_files, step, size_bytes
):
    def on_step(name, *_progress):
        if name == step:
            limit_files(size_bytes)

    with pytest.raises(OSError, match="bundle") as caught:
        export(tiny_checkpoint, older_bundle, "int8", on_step)
    assert full_disk_line(caught.value).startswith(f"{older_bundle} cannot be written: ")


def test_a_failed_check_leaves_the_older_bundle(tiny_checkpoint, older_bundle, monkeypatch):
    def other_tensors(ops, weight, codes):
        """Tensors of the weight's channels in reverse order."""
        return tensors(ops, weight, replace(codes, codes=codes.codes.flip(0)))

    tensors = RowInt8.tensors
    monkeypatch.setattr(RowInt8, "tensors", other_tensors)
    with pytest.raises(ExportError, match="differs"):
        export(tiny_checkpoint, older_bundle, "int8")


def test_blocks_that_do_not_fit_leave_the_older_bundle(tiny_config, older_bundle, tmp_path):
    text = replace(tiny_config.text_config, intermediate_size=80)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_random_checkpoint(replace(tiny_config, text_config=text), folder, seed=0)
    with pytest.raises(ExportError, match=r"down_proj\.weight has 80 inputs"):
        export(folder, older_bundle, "int4")
