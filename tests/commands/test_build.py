"""`mod-edge build`: its output, its reaction to signals, and the few packages that it needs."""

import json
import re
import shutil
import signal
from dataclasses import replace

import pytest

from mod_edge.bundle.engine_manifest import read_engine_manifests
from mod_edge.export import engines as engine_module
from tests.commands.mod_edge_command import finish, invoke, run_without, start

pytest.importorskip("tensorrt_rtx")

NUM_GRAPHS = 9
# A device that only builds and runs engines has none of these.
NEVER_NEEDED = (
    *("torch", "onnx", "onnx_graphsurgeon", "onnxscript", "onnxruntime"),
    *("polygraphy", "safetensors"),
)
FOR_ADA = ("--profile", "rtx-ada", "--compute-capability", "8.9")


@pytest.fixture
def built(built_bundle, tmp_path):
    """A copy of the bundle with all engines."""
    return shutil.copytree(built_bundle, tmp_path / "bundle")


def remove_engine(bundle, name):
    (path,) = bundle.glob(f"engines/*/{name}.engine")
    path.unlink()


# ---- output ----


def test_up_to_date_engines_are_skipped_and_counted(built):
    result = invoke("build", built, *FOR_ADA)
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        r"0 built, 9 up to date in \d+\.\d s: \S+/engines/rtx-\w{8}, \d+\.\d MB "
        r"for compute capability 8\.9 by TensorRT-RTX [\d.]+, peak memory \d+\.\d [MG]B\n",
        result.stdout,
    )
    assert result.stderr == ""


def test_a_missing_engine_is_built_with_a_line_of_progress(built):
    remove_engine(built, "head")
    result = invoke("build", built, *FOR_ADA)
    assert result.stdout.startswith("1 built, 8 up to date")
    assert result.stderr == "build: head (0%)\n"


def test_json_lists_every_graph(built):
    document = json.loads(invoke("build", built, *FOR_ADA, "--json").stdout)
    assert (document["num_built"], document["num_fresh"]) == (0, NUM_GRAPHS)
    assert [graph["is_built"] for graph in document["graphs"]] == [False] * NUM_GRAPHS


def test_a_compilers_warning_is_shown_with_its_graph(built, monkeypatch):
    compile_graph = engine_module.compile_graph

    def warns(*arguments, **options):
        return replace(compile_graph(*arguments, **options), warnings=("kernels are slow",))

    monkeypatch.setattr(engine_module, "compile_graph", warns)
    remove_engine(built, "rebase")
    assert "warning: rebase: kernels are slow\n" in invoke("build", built, *FOR_ADA).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "rtx-adda"), "did you mean 'rtx-ada'?"),
        (("--profile", "jetson-thor"), "profile 'jetson-thor' is for tensorrt, tensorrt-delta"),
        (("--profile", "rtx-ada", "--compute-capability", "8.7"), "does not compile for compute"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(built, arguments, message):
    result = invoke("build", built, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_missing_profile_is_a_usage_error(built):
    assert invoke("build", built).exit_code == 2


# ---- in a process of its own ----


def test_it_builds_where_neither_torch_nor_onnx_is_installed(built):
    remove_engine(built, "layer-01")
    done = run_without(NEVER_NEEDED, "build", built, *FOR_ADA)
    assert done.stdout.startswith("1 built, 8 up to date"), done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_stops_a_build_and_keeps_the_finished_engines(built, number):
    shutil.rmtree(built / "engines")
    process = start("build", built, *FOR_ADA)
    assert any("layer-00" in line for line in process.stderr)
    process.send_signal(number)
    stdout, stderr = finish(process)
    assert process.returncode == 130, stderr
    assert stderr.endswith("interrupted; no incomplete files were left\n")
    assert stdout == ""
    (engines,) = read_engine_manifests(built)
    assert list(engines.engines) == ["vision"]
    files = sorted(path.name for path in (built / engines.settings.folder).iterdir())
    assert files == ["manifest.json", "vision.engine"]
