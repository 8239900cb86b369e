"""Opening checkpoints and bundles, and refused combinations."""

import subprocess
import sys
from pathlib import Path

import pytest

from mod_edge import profiles
from mod_edge.bundle.manifest import MANIFEST_FILE
from mod_edge.errors import BackendError, BundleError, CheckpointError, ConfigError
from mod_edge.evaluation.eval_model import open_model
from mod_edge.plan.kv_window import Rows
from mod_edge.runtime.loaded_model import StreamLimits

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_checkpoint_runs_on_pytorch(tiny_checkpoint, backend):
    source = open_model(tiny_checkpoint, backend=backend, device="auto")
    model, reason = source.load(StreamLimits(Rows(99, 99), 40, 3))
    assert model.name.startswith("torch (reference")
    assert reason == "for a checkpoint"
    assert source.capacity is None


@pytest.mark.parametrize(
    ("backend", "device", "profile"),
    [
        ("onnx", "auto", None),
        ("tensorrt", "auto", None),
        ("auto", "cpu", None),
        ("auto", "auto", "cpu"),
    ],
)
def test_a_checkpoint_takes_no_options_of_bundles(tiny_checkpoint, backend, device, profile):
    with pytest.raises(ConfigError, match=r"is not a bundle, .*omit --backend, --device and"):
        open_model(tiny_checkpoint, backend=backend, device=device, profile=profile)


def test_a_bundle_runs_with_the_given_profile(tiny_bundle, tmp_path):
    own = tmp_path / "own.toml"
    shipped = (Path(profiles.__file__).parent / "cpu.toml").read_text()
    own.write_text(shipped.replace("evict_fraction = 0.125", "evict_fraction = 0.25"))
    source = open_model(tiny_bundle, backend="auto", device="auto", profile=own)
    assert source.profile.evict_fraction == 0.25


def test_a_bundle_does_not_run_on_pytorch(tmp_path):
    (tmp_path / MANIFEST_FILE).touch()
    with pytest.raises(ConfigError, match="is a bundle, and backend torch runs checkpoints"):
        open_model(tmp_path, backend="torch", device="auto")


def test_an_unknown_backend_lists_the_known_ones(tiny_checkpoint):
    with pytest.raises(ConfigError, match="wanted one of auto, tensorrt, onnx"):
        open_model(tiny_checkpoint, backend="onyx", device="auto")


def test_a_folder_that_is_neither_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_model(tmp_path, backend="auto", device="auto")
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(BundleError):
        open_model(tmp_path, backend="auto", device="auto")


@pytest.mark.parametrize("has_torch", [True, False])
def test_a_name_on_the_hub_gives_the_command_that_downloads_it(monkeypatch, has_torch):
    if not has_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match="hf download owner/name --local-dir name"):
        open_model(Path("owner/name"), backend="auto", device="auto")


def test_evaluating_a_checkpoint_without_torch_says_what_to_install(tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("mod_edge.native.package_faults.installed_version", lambda _package: None)
    with pytest.raises(
        BackendError, match=r"PyTorch: torch is not installed; install it with: pip"
    ):
        open_model(tiny_checkpoint, backend="auto", device="auto")


def test_evaluating_a_bundle_needs_no_torch():
    code = (
        "import sys, mod_edge.evaluation.evaluate, mod_edge.commands.evaluation_view; "
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
