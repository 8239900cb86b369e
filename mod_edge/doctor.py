"""What this machine can run and what it lacks: versions, backends, cameras, memory.

Nothing here prints or raises: what does not work becomes a finding with the way to mend it. Heavy
packages (torch, onnx) are looked up in the installed metadata, never imported.
"""

import contextlib
import io
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from mod_edge.doctor_finding import Finding
from mod_edge.doctor_gpu import Compiler, judge_engines, look_at_compilers, look_at_gpu
from mod_edge.export.gpu import Gpu
from mod_edge.noise import captured_noise
from mod_edge.onnx_session import session_options, usable_cores

# All of these install one and the same module, `onnxruntime`.
ONNXRUNTIME_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-trt-rtx",
)
PACKAGES = (
    "mod-edge",
    "numpy",
    "tokenizers",
    "torch",
    "onnx",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-python",
)
REMOTE_PROVIDERS = {"AzureExecutionProvider"}  # sends inputs to a service; part of every wheel
MIN_FREE_BYTES = 2**30  # less is too little for any but a toy model
INSTALL_ONNXRUNTIME = "pip install 'mod-edge[cpu]' (or 'mod-edge[gpu]' for an NVIDIA GPU)"

JETSON_RELEASE = Path("/etc/nv_tegra_release")
BOARD_MODEL = Path("/proc/device-tree/model")
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")

# y = x + x on two floats, IR version 8 and opset 13, so that every onnxruntime in use reads it:
# onnx.helper.make_model(make_graph([make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y]),
# opset_imports=[make_opsetid("", 13)], ir_version=8).SerializeToString()
LOG_WARNINGS = 2  # onnxruntime's severity; the reason why a provider does not load is logged
PROBE_MODEL = (
    b'\x08\x08:9\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x05probe'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"B\x04\n\x00\x10\r"
)


@dataclass(frozen=True)
class Provider:
    """An ONNX Runtime execution provider: whether a session really runs on it, else why not."""

    name: str
    loads: bool
    reason: str = ""


@dataclass(frozen=True)
class Camera:
    """A listed video device, /dev/video<number>, and whether it opens."""

    number: int
    opens: bool


@dataclass(frozen=True)
class Machine:
    """The computer; None where the system does not say.

    Attributes:
        name: board or processor.
        jetson_release: first line of /etc/nv_tegra_release; None where it is no Jetson.
        num_cores: that this process may use.
    """

    name: str
    architecture: str
    system: str
    jetson_release: str | None
    num_cores: int
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    disk_free_bytes: int | None


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        versions: of packages, None where not installed; `python`, `opencv` and `onnxruntime` too.
        providers: those that the installed onnxruntime offers.
        video_backends: whether OpenCV was built with `FFmpeg` and `GStreamer`.
        compilers: the TensorRTs that are installed.
        gpu: the first visible NVIDIA GPU; None where there is none that works.
    """

    versions: dict[str, str | None]
    machine: Machine
    providers: tuple[Provider, ...]
    video_backends: dict[str, bool]
    cameras: tuple[Camera, ...]
    compilers: tuple[Compiler, ...]
    gpu: Gpu | None
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, tuples and scalars, for JSON."""
        return asdict(self)


def diagnose() -> Report:
    """Look at this machine; opens each camera and each ONNX Runtime provider for a moment."""
    versions = {name: installed_version(name) for name in (*PACKAGES, *ONNXRUNTIME_PACKAGES)}
    versions["python"] = platform.python_version()
    machine = _look_at_machine()
    providers, onnxruntime_fault = _attempt(_look_at_providers)
    opencv, opencv_fault = _attempt(_look_at_opencv)
    versions["opencv"], video_backends = opencv or (None, {})
    cameras = _attempt(_look_at_cameras)[0] or ()  # fails only where OpenCV did
    compilers = look_at_compilers(versions)
    gpu, gpu_fault = look_at_gpu()
    findings = (
        *_judge_packages(versions),
        *_judge_onnxruntime(versions, onnxruntime_fault),
        *(_judge_provider(provider) for provider in providers or ()),
        _judge_video(versions["opencv"], video_backends, opencv_fault),
        _judge_cameras(cameras),
        *judge_engines(compilers, gpu, gpu_fault),
        *_judge_machine(machine, versions),
    )
    return Report(
        versions, machine, providers or (), video_backends, cameras, compilers, gpu, findings
    )


def installed_version(package: str) -> str | None:
    """Version in the package's metadata; None if it is not installed."""
    try:
        return metadata.version(package)
    except Exception:  # broken metadata raises KeyError or TypeError, by Python's version
        return None


Result = TypeVar("Result")


def _attempt(look: Callable[[], Result]) -> tuple[Result | None, str]:
    """What `look` returns and "", or None and the reason why it failed."""
    try:
        with captured_noise():
            return look(), ""
    except Exception as exc:  # a broken native library raises anything from ImportError on
        return None, _last_line(str(exc)) or type(exc).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


# ---- looking ----


def _look_at_machine() -> Machine:
    memory = _memory_bytes()
    try:
        disk_free_bytes = shutil.disk_usage(".").free
    except OSError:  # the current folder was deleted
        disk_free_bytes = None
    return Machine(
        name=_machine_name(),
        architecture=platform.machine(),
        system=platform.platform(terse=True),
        jetson_release=_read(JETSON_RELEASE).partition("\n")[0] or None,
        num_cores=usable_cores(),
        memory_total_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        disk_free_bytes=disk_free_bytes,
    )


def _machine_name() -> str:
    processor = re.search(r"^model name\s*: (.+)$", _read(CPU_INFO), re.MULTILINE)
    return (
        _read(BOARD_MODEL).strip("\0\n ")
        or (processor.group(1).strip() if processor else "")
        or platform.processor()
        or platform.machine()
    )


def _memory_bytes() -> dict[str, int]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", _read(MEMORY_INFO), re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in lines}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _look_at_providers() -> tuple[Provider, ...]:
    import onnxruntime

    names = onnxruntime.get_available_providers()
    return tuple(_try_provider(name) for name in names if name not in REMOTE_PROVIDERS)


def _try_provider(name: str) -> Provider:
    """Run a session on it: a listed provider whose libraries are missing falls back silently."""
    import onnxruntime

    with captured_noise() as noise, contextlib.redirect_stdout(io.StringIO()):  # prints both ways
        try:
            options = session_options()
            options.log_severity_level = LOG_WARNINGS
            session = onnxruntime.InferenceSession(PROBE_MODEL, options, providers=[name])
            loads = session.get_providers()[0] == name
            failure = ""
        except Exception as exc:  # each provider has exceptions of its own
            loads, failure = False, str(exc)
    return Provider(name, loads, "" if loads else _library_fault(failure or noise.text))


def _library_fault(log: str) -> str:
    """The missing library in ONNX Runtime's log, which ends with general advice, else its end."""
    log = re.sub(r"\x1b\[[0-9;]*m", "", log)  # it colours its log wherever it goes
    fault = re.search(r"with error: (.+)$", log, re.MULTILINE)
    return fault.group(1).strip() if fault else _last_line(log)


def _look_at_opencv() -> tuple[str | None, dict[str, bool]]:
    import cv2

    built = re.findall(
        r"^\s+(FFMPEG|GStreamer):\s+(YES|NO)", cv2.getBuildInformation(), re.MULTILINE
    )
    backends = {name: answer == "YES" for name, answer in built}
    return cv2.__version__, {
        "FFmpeg": backends.get("FFMPEG", False),
        "GStreamer": backends.get("GStreamer", False),
    }


def _look_at_cameras() -> tuple[Camera, ...]:
    from mod_edge.runtime.sources import camera_numbers, can_open_camera

    return tuple(Camera(number, can_open_camera(number)) for number in camera_numbers())


# ---- judging ----


def _judge_packages(versions: dict[str, str | None]) -> list[Finding]:
    missing = [name for name in ("numpy", "tokenizers") if versions[name] is None]
    if not missing:
        return []
    return [
        Finding(
            "error",
            f"{' and '.join(missing)} not installed: the base install is incomplete",
            "pip install --force-reinstall mod-edge",
        )
    ]


def _judge_onnxruntime(versions: dict[str, str | None], fault: str) -> list[Finding]:
    found = [name for name in ONNXRUNTIME_PACKAGES if versions[name] is not None]
    if len(found) > 1:
        return [
            Finding(
                "error",
                f"{' and '.join(found)} are installed side by side and own the same files",
                f"pip uninstall -y {' '.join(found)}, then {INSTALL_ONNXRUNTIME}",
            )
        ]
    if fault and not found:
        message = "onnxruntime is not installed: no bundle can run on the CPU or with CUDA"
        return [Finding("error", message, INSTALL_ONNXRUNTIME)]
    if fault:
        message = f"{found[0]} {versions[found[0]]} cannot be imported: {fault}"
        return [Finding("error", message, f"pip install --force-reinstall {found[0]}")]
    name = found[0] if found else "onnxruntime"  # built from source: no metadata
    return [Finding("ok", f"{name} {versions.get(name) or '(built from source)'}")]


def _judge_provider(provider: Provider) -> Finding:
    if provider.loads:
        return Finding("ok", f"{provider.name} runs")
    return Finding(
        "warning",
        f"{provider.name} is listed but does not load"
        + (f": {provider.reason}" if provider.reason else ""),
        "install the CUDA, cuDNN or TensorRT version that this onnxruntime was built for and put "
        "it on LD_LIBRARY_PATH; until then bundles run on the CPU",
    )


def _judge_video(version: str | None, backends: dict[str, bool], fault: str) -> Finding:
    if version is None:
        return Finding(
            "error",
            f"OpenCV cannot be imported: {fault}",
            "on a machine without a desktop: apt-get install libgl1 libglib2.0-0, or "
            "pip uninstall -y opencv-python and pip install opencv-python-headless",
        )
    built = [name for name, is_built in backends.items() if is_built]
    if built:
        return Finding("ok", f"OpenCV {version} reads video with {' and '.join(built)}")
    return Finding(
        "error",
        f"OpenCV {version} was built without FFmpeg and GStreamer: no video file can be read",
        "pip install --force-reinstall opencv-python",
    )


def _judge_cameras(cameras: tuple[Camera, ...]) -> Finding:
    open_ones = [f"/dev/video{camera.number}" for camera in cameras if camera.opens]
    if open_ones:
        return Finding("ok", f"camera at {', '.join(open_ones)}")  # others hold metadata, often
    if not cameras:
        return Finding("ok", "no camera is connected; files and streams can be read")
    return Finding(
        "warning",
        f"none of {len(cameras)} video devices opens",
        "close the program that uses the camera, and join the group: sudo usermod -aG video $USER",
    )


def _judge_machine(machine: Machine, versions: dict[str, str | None]) -> list[Finding]:
    findings = []
    for what, free_bytes, advice in (
        ("memory", machine.memory_available_bytes, "close other programs or add swap"),
        ("disk", machine.disk_free_bytes, "make room, or work in a folder on another disk"),
    ):
        if free_bytes is not None and free_bytes < MIN_FREE_BYTES:
            message = f"only {free_bytes / 2**20:.0f} MiB of {what} are free"
            findings.append(Finding("warning", message, advice))
    if machine.jetson_release and versions["tensorrt"] is None:
        findings.append(
            Finding(
                "warning",
                "this Jetson's TensorRT is not visible to this Python",
                "apt-get install python3-libnvinfer, and make the virtual environment with "
                "python3 -m venv --system-site-packages",
            )
        )
    return findings
