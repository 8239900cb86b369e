"""`mod-edge build`: what it prints, that it stops when told to, and how little it needs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mod_edge.bundle.engine_manifest import read_engine_manifests
from mod_edge.commands.app import app
from mod_edge.export import engines as engine_module

pytest.importorskip("tensorrt_rtx")

NUM_GRAPHS = 9
TIMEOUT_S = 120
# What is on no device that only compiles and runs engines.
NEVER_NEEDED = "torch onnx onnx_graphsurgeon onnxscript onnxruntime polygraphy safetensors"
WITHOUT = (  # a Python in which these packages are not installed
    "import sys\n"
    "for name in sys.argv.pop(1).split():\n"
    "    sys.modules[name] = None\n"
    "from mod_edge.commands.app import app\n"
    "app(prog_name='mod-edge')\n"
)
START = (  # where tests run in the background, Ctrl-C is ignored and that would be inherited
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from mod_edge.commands.app import app\n"
    "app(prog_name='mod-edge')\n"
)
FOR_ADA = ("--profile", "rtx-ada", "--compute-capability", "8.9")


def invoke(*arguments):
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


@pytest.fixture
def built(built_bundle, tmp_path):
    """A copy of the bundle with all engines."""
    return shutil.copytree(built_bundle, tmp_path / "bundle")


def remove_engine(bundle, name):
    (path,) = bundle.glob(f"engines/*/{name}.engine")
    path.unlink()


# ---- what it prints ----


def test_building_what_is_fresh_prints_how_many_and_where(built):
    result = invoke(built, *FOR_ADA)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        r"0 built, 9 fresh in \d+\.\d s: \S+/engines/rtx-\w{8}, \d+\.\d MB "
        r"for compute capability 8\.9 by TensorRT-RTX [\d.]+, peak memory \d+\.\d [MG]B\n",
        result.stdout,
    )
    assert result.stderr == ""


def test_what_is_missing_is_built_with_a_line_of_progress(built):
    remove_engine(built, "head")
    result = invoke(built, *FOR_ADA)
    assert result.stdout.startswith("1 built, 8 fresh")
    assert result.stderr == "build: head (0%)\n"


def test_json_tells_each_graph(built):
    document = json.loads(invoke(built, *FOR_ADA, "--json").stdout)
    assert (document["num_built"], document["num_fresh"]) == (0, NUM_GRAPHS)
    assert [graph["is_built"] for graph in document["graphs"]] == [False] * NUM_GRAPHS


def test_a_compilers_warning_is_shown_with_its_graph(built, monkeypatch):
    compile_graph = engine_module.compile_graph

    def warns(*arguments, **options):
        return replace(compile_graph(*arguments, **options), warnings=("kernels are slow",))

    monkeypatch.setattr(engine_module, "compile_graph", warns)
    remove_engine(built, "rebase")
    assert "warning: rebase: kernels are slow\n" in invoke(built, *FOR_ADA).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "rtx-adda"), 'did you mean "rtx-ada"?'),
        (("--profile", "jetson-thor"), "profile 'jetson-thor' is for tensorrt, tensorrt-delta"),
        (("--profile", "rtx-ada", "--compute-capability", "8.7"), "does not compile for compute"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(built, arguments, message):
    result = invoke(built, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_no_profile_is_wrong_usage(built):
    assert invoke(built).exit_code == 2


# ---- in a process of its own ----


def test_it_builds_where_neither_torch_nor_onnx_is_installed(built):
    remove_engine(built, "layer-01")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, NEVER_NEEDED, "build", str(built), *FOR_ADA],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout.startswith("1 built, 8 fresh"), done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_a_build_and_keeps_what_is_finished(built, number):
    shutil.rmtree(built / "engines")
    with subprocess.Popen(
        [sys.executable, "-c", START, "build", str(built), *FOR_ADA],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            while "layer-00" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    assert stderr.endswith("stopped; nothing was left half-made\n")
    assert stdout == ""
    (engines,) = read_engine_manifests(built)
    assert list(engines.engines) == ["vision"]
    files = sorted(path.name for path in (built / engines.settings.folder).iterdir())
    assert files == ["manifest.json", "vision.engine"]
