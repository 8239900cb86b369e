"""A bundle of manifest format 3, exported by an older mod-edge, still opens, runs and verifies."""

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mod_edge.bundle.bundle import open_bundle
from mod_edge.bundle.manifest import MANIFEST_FILE
from mod_edge.commands.app import app
from mod_edge.plan.targets import CPU_FP32
from mod_edge.verification.verify import verify_bundle

pytestmark = pytest.mark.numeric

# Made by the command in PROVENANCE.md beside it; an archive, so that nothing reformats its files.
ARCHIVE = Path(__file__).parent.parent / "data" / "bundle-format-3.tar.xz"


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The folder with the unpacked checkpoint and bundle."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_it_opens_with_every_hash_checked(older):
    manifest = json.loads((older / "bundle" / MANIFEST_FILE).read_text())
    assert manifest["format_version"] == 3
    bundle = open_bundle(older / "bundle", hash_all=True)
    assert bundle.lowering == CPU_FP32
    assert bundle.is_whole
    for signature in bundle.signatures():
        assert bundle.manifest.graphs[signature.name].weights is None


def test_it_runs_a_stream(older, clip):
    command = ["run", older / "bundle", "--source", clip, "--max-frames", 6, "--json"]
    options = ["--query", "What happens?", "--max-new-tokens", 4]
    result = CliRunner().invoke(app, [str(each) for each in (*command, *options)])
    assert result.exit_code == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events].count("frame") == 6
    assert any(event["event"] == "reply" for event in events)
    assert events[-1]["event"] == "summary"


def test_it_verifies_against_its_checkpoint(older):
    report = verify_bundle(older / "bundle", older / "checkpoint")
    assert report.is_ok
    assert {graph.graph for graph in report.graphs} == {"vision", "layer-00", "layer-01", "head"}
    assert report.streams
