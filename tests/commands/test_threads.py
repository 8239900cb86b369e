"""`--threads` and a CPU quota: what the commands compute with, and that they show it."""

import json
import os
import subprocess
import sys

import pytest
import typer

from mod_edge.commands import arguments
from mod_edge.commands.arguments import use_threads
from mod_edge.native.cpu_cores import CpuCores
from tests.commands.mod_edge_command import succeeds

VARIABLE = "OMP_NUM_THREADS"  # PyTorch's


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    """A process that has no thread pool yet and chose no number."""
    monkeypatch.setattr("mod_edge.native.onnx_session._has_pool", False)
    monkeypatch.setattr("mod_edge.native.onnx_session._chosen_threads", None)
    monkeypatch.setenv(VARIABLE, "1")  # restored after the test


def test_run_shows_its_threads_on_the_screen_and_in_json(tiny_bundle, clip, monkeypatch):
    monkeypatch.setattr("mod_edge.native.onnx_session.usable_cores", lambda: 5)
    arguments = ("run", tiny_bundle, "--source", clip, "--max-frames", 1, "--threads", 1)
    assert "CPU, threads 1): for target cpu" in succeeds(*arguments).stderr
    summary = json.loads(succeeds(*arguments, "--json").stdout.splitlines()[-1])
    assert summary["backend"].endswith("CPU, threads 1): for target cpu")


def test_more_threads_than_the_machine_has_cores_are_a_usage_error(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    use_threads(8)
    with pytest.raises(typer.BadParameter, match="9 threads, but this machine has 8 cores"):
        use_threads(9)


def test_without_the_option_there_is_a_thread_per_usable_core(tiny_bundle, clip, monkeypatch):
    monkeypatch.setattr("mod_edge.native.onnx_session.usable_cores", lambda: 5)
    result = succeeds("run", tiny_bundle, "--source", clip, "--max-frames", 1)
    assert "CPU, threads 5)" in result.stderr


def test_the_option_sets_pytorchs_threads_too(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    use_threads(7)
    assert os.environ[VARIABLE] == "7"


def test_pytorch_follows_a_quota_that_is_smaller_than_the_machine(monkeypatch):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(arguments, "cpu_cores", lambda: CpuCores(8, 1.5))
    use_threads(None)
    assert os.environ[VARIABLE] == "2"


@pytest.mark.parametrize("quota", [None, 8.0, 64.0])
def test_without_such_a_quota_pytorch_keeps_its_default(monkeypatch, quota):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(arguments, "cpu_cores", lambda: CpuCores(8, quota))
    use_threads(None)
    assert VARIABLE not in os.environ


def test_a_quota_does_not_override_the_users_variable(monkeypatch):
    monkeypatch.setattr(arguments, "cpu_cores", lambda: CpuCores(8, 2.0))
    use_threads(None)
    assert os.environ[VARIABLE] == "1"


def test_torch_is_not_imported_before_the_variable_is_set():
    code = "import sys; import mod_edge.commands.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
