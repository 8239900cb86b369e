"""`mod-edge doctor` on this machine, and on machines where a component is missing or broken."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mod_edge.commands.doctor import print_report
from mod_edge.doctor import diagnosis as doctor
from mod_edge.doctor import facts
from mod_edge.errors import BackendError
from mod_edge.native.cpu_cores import CpuCores
from mod_edge.native.gpu import Gpu
from mod_edge.native.installed import install_command, installed_version
from mod_edge.runtime.capture import camera_list
from mod_edge.runtime.capture.video_devices import PictureFormat

PROVIDER_LOG = (  # onnxruntime-gpu 1.20.2 on a machine without CUDA
    "\x1b[1;31m2026-01-01 00:00:00.1 [E:onnxruntime:Default, provider_bridge_ort.cc:1862 "
    "TryGetProviderInfo_CUDA] [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object "
    "file: No such file or directory\n\x1b[m\n"
    "\x1b[0;93m2026-01-01 00:00:00.2 [W:onnxruntime:Default] Failed to create "
    "CUDAExecutionProvider. Require cuDNN 9.* and CUDA 12.*.\x1b[m\n"
)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Package versions that the doctor sees instead of the real ones.

    The rest of the machine is fixed too: CPU provider, memory, no camera, no Jetson, no GPU.
    """
    versions = {"mod-edge": "1.0", "numpy": "2.0", "tokenizers": "0.20", "onnxruntime": "1.20"}
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(camera_list, "device_numbers", list)
    memory = tmp_path / "plenty"
    memory.write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr(facts, "MEMORY_INFO", memory)
    monkeypatch.setattr(facts.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**12))
    for name in ("JETSON_RELEASE", "BOARD_MODEL"):
        monkeypatch.setattr(facts, name, tmp_path / "missing")
    monkeypatch.setattr(doctor, "look_at_gpu", lambda: (None, "no NVIDIA GPU can be used here"))
    return versions


def faults():
    """(severity, message, advice) of every finding that is not ok."""
    findings = doctor.diagnose().findings
    return [(f.severity, f.message, f.advice) for f in findings if f.severity != "ok"]


def test_a_minimal_machine_is_healthy_and_its_report_is_json(installed, capfd):
    """OpenCV and onnxruntime are this machine's own and really run."""
    report = doctor.diagnose()
    document = json.loads(json.dumps(report.to_dict()))
    assert report.is_healthy
    assert {"name": "CPUExecutionProvider", "loads": True, "reason": ""} in document["providers"]
    assert document["video_backends"]["FFmpeg"]
    assert document["versions"]["opencv"].startswith(("4.", "5."))
    assert document["machine"]["num_cores"] >= 1
    assert {finding["severity"] for finding in document["findings"]} == {"ok"}
    assert capfd.readouterr() == ("", "")


def test_the_probe_model_is_what_its_comment_says():
    onnx = pytest.importorskip("onnx")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y]
    )
    opsets = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == facts.PROBE_MODEL


def test_torch_onnx_and_polygraphy_are_looked_up_without_being_imported():
    code = (
        "import sys; from mod_edge.doctor.diagnosis import diagnose; diagnose(); "
        "print({'torch', 'onnx', 'polygraphy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_two_onnxruntimes_are_an_error_with_the_pip_commands(installed):
    installed["onnxruntime-gpu"] = "1.20"
    ((severity, message, advice),) = faults()
    assert severity == "error"
    assert message.startswith("onnxruntime and onnxruntime-gpu are both installed")
    assert f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_command('cpu')}" in advice


def test_no_onnxruntime_is_an_error_that_names_both_extras(installed, monkeypatch):
    del installed["onnxruntime"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # None: the import fails
    ((severity, message, advice),) = faults()
    assert (severity, message.split(":")[0]) == ("error", "onnxruntime is not installed")
    assert install_command("cpu") in advice
    assert "the extra gpu" in advice


def test_no_onnxruntime_is_no_fault_where_engines_run(installed, monkeypatch):
    """As docs/jetson.md sets a board up."""
    del installed["onnxruntime"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    compiler = facts.Compiler("tensorrt", "TensorRT 10.3")
    monkeypatch.setattr(doctor, "look_at_compilers", lambda _versions: (compiler,))
    monkeypatch.setattr(doctor, "look_at_gpu", lambda: (Gpu("Orin", "87", 8 * 2**30, "12.6"), ""))
    report = doctor.diagnose()
    assert report.is_healthy
    said = [each.message for each in report.findings if "onnxruntime" in each.message]
    assert said == ["onnxruntime is not installed; --backend onnx and mod-edge verify need it"]


def test_an_onnxruntime_without_metadata_counts_as_built_from_source(installed):
    del installed["onnxruntime"]
    assert faults() == []


def test_a_provider_that_falls_back_is_a_warning_with_the_missing_library(installed, monkeypatch):
    class FallsBack:
        def __init__(self, model, options, providers):
            if providers == ["CUDAExecutionProvider"]:
                os.write(2, PROVIDER_LOG.encode())

        def get_providers(self):
            return ["CPUExecutionProvider"]

    onnxruntime = pytest.importorskip("onnxruntime")
    names = ["CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallsBack)
    ((severity, message, _),) = faults()
    assert severity == "warning"
    assert message == (
        "CUDAExecutionProvider is listed but cannot be loaded: libcublasLt.so.12: "
        "cannot open shared object file: No such file or directory"
    )


def test_a_cpu_provider_that_does_not_run_is_an_error_without_advice_about_cuda(
    installed, monkeypatch
):
    def too_old(**_options):
        raise BackendError("onnxruntime 1.22.1 is too old, wanted 1.23 or newer")

    monkeypatch.setattr(facts, "session_options", too_old)
    ((severity, message, advice),) = faults()
    assert severity == "error"
    assert message.startswith("CPUExecutionProvider does not run: onnxruntime 1.22.1 is too old")
    assert advice.startswith("pip install --upgrade onnxruntime, or pip install --force-reinstall")
    assert "CUDA" not in advice


def test_broken_native_libraries_are_reported_not_raised(installed, monkeypatch):
    installed.clear()
    for module in ("cv2", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "mod_edge.runtime.capture.opencv", raising=False)
    report = doctor.diagnose()
    errors = [f.message for f in report.findings if f.severity == "error"]
    assert not report.is_healthy
    assert errors[0] == "numpy and tokenizers not installed: the base install is incomplete"
    assert errors[1].startswith("onnxruntime is not installed")
    assert errors[2].startswith("no video can be read: ")


@pytest.mark.parametrize(
    ("products", "says"),
    [
        ("u8 x s8", "int8 weights are multiplied as u8 x s8"),
        (
            "u8 x u8",
            "int8 weights are multiplied as u8 x u8, slower: this CPU's u8 x s8 products are not "
            "exact",
        ),
    ],
)
def test_the_report_says_how_int8_weights_are_multiplied(
    installed, monkeypatch, capsys, products, says
):
    monkeypatch.setattr(doctor, "exact_int8_products", lambda: products)
    report = doctor.diagnose()
    assert says in [finding.message for finding in report.findings]
    assert report.is_healthy
    print_report(report)
    assert re.search(rf"^int8 weights as +{products}$", capsys.readouterr().out, re.MULTILINE)


def test_wrong_products_of_int8_weights_are_a_warning(installed, monkeypatch):
    def wrong():
        raise BackendError("onnxruntime 9 multiplies int8 weights wrongly on this CPU; upgrade it")

    monkeypatch.setattr(doctor, "exact_int8_products", wrong)
    says = "no bundle with int8 weights can run: onnxruntime 9 multiplies int8 weights wrongly on "
    assert faults() == [("warning", f"{says}this CPU", "upgrade it")]


def test_cameras_are_a_warning_if_none_of_them_opens(installed, monkeypatch):
    monkeypatch.setattr(camera_list, "device_numbers", lambda: [0, 1])
    monkeypatch.setattr(camera_list, "_format_of", lambda *_: (None, "camera cannot be opened"))
    ((severity, message, advice),) = faults()
    assert (severity, message) == ("warning", "none of the 2 video devices can be opened")
    assert "usermod -aG video" in advice
    given = PictureFormat(640, 480, 30.0, "YUYV")
    monkeypatch.setattr(
        camera_list, "_format_of", lambda source, _: (given if source.device else None, "")
    )
    report = doctor.diagnose()
    assert [(camera.path, camera.opens) for camera in report.cameras] == [
        ("/dev/video0", False),
        ("/dev/video1", True),
    ]
    assert "camera at /dev/video1" in [finding.message for finding in report.findings]


def test_a_jetson_is_named_and_its_hidden_tensorrt_reported(installed, monkeypatch, tmp_path):
    release, model = tmp_path / "nv_tegra_release", tmp_path / "model"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1\n# KERNEL_VARIANT: oot\n")
    model.write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    monkeypatch.setattr(facts, "JETSON_RELEASE", release)
    monkeypatch.setattr(facts, "BOARD_MODEL", model)
    machine = doctor.diagnose().machine
    assert machine.name.endswith("Developer Kit Super")
    assert machine.jetson_release == "# R36 (release), REVISION: 4.3, GCID: 1"
    ((severity, message, advice),) = faults()
    assert (severity, "cannot see the Jetson's TensorRT" in message) == ("warning", True)
    assert "--system-site-packages" in advice
    installed["tensorrt"] = "10.3.0"
    assert not [message for _, message, _ in faults() if "cannot see" in message]


def test_low_memory_is_a_warning_and_unknown_memory_is_none(installed, monkeypatch, tmp_path):
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:        1000000 kB\nMemAvailable:     512000 kB\n")
    monkeypatch.setattr(facts, "MEMORY_INFO", memory)
    ((severity, message, _),) = faults()
    assert (severity, message) == ("warning", "only 500 MiB of memory are free")
    memory.unlink()
    machine = doctor.diagnose().machine
    assert machine.memory_total_bytes is None
    assert machine.memory_available_bytes is None


def test_the_cores_that_a_quota_leaves_are_reported(installed, monkeypatch, capsys):
    monkeypatch.setattr(facts, "cpu_cores", lambda: CpuCores(8, 1.5))
    report = doctor.diagnose()
    assert (report.machine.num_cores, report.machine.cpu_quota) == (2, 1.5)
    print_report(report)
    assert re.search(r"^cores +2 usable \(CPU quota 1\.5\)$", capsys.readouterr().out, re.MULTILINE)


def test_a_package_with_broken_metadata_counts_as_not_installed(monkeypatch, tmp_path):
    (tmp_path / "polygraphy-9.9.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_version("polygraphy") is None
    assert installed_version("no-such-package") is None
