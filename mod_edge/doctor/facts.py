"""Facts about this machine: versions, providers, cameras, compilers, GPU, memory.

Nothing here prints or raises if a component is broken: the fact says so. Heavy packages (torch,
onnx) are looked up in the installed metadata, never imported. TensorRT is imported, because only
that shows whether its libraries load, and it is quick.
"""

import contextlib
import io
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mod_edge.errors import BackendError
from mod_edge.native.captured_stderr import captured_stderr
from mod_edge.native.cpu_cores import cpu_cores
from mod_edge.native.gpu import Gpu, find_gpu
from mod_edge.native.onnx_session import session_options
from mod_edge.native.package_faults import last_line
from mod_edge.native.procfs import sizes_in
from mod_edge.native.trt import load

if TYPE_CHECKING:
    from mod_edge.runtime.capture.camera_list import ListedCamera

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
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # by package
CPU_PROVIDER = "CPUExecutionProvider"  # in every onnxruntime; needs no library
REMOTE_PROVIDERS = {"AzureExecutionProvider"}  # sends inputs to a cloud service; in every wheel

JETSON_RELEASE = Path("/etc/nv_tegra_release")
BOARD_MODEL = Path("/proc/device-tree/model")
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")

LOG_WARNINGS = 2  # onnxruntime's log severity: why a provider does not load is only logged
# y = x + x on two floats; IR version 8 and opset 13, which every onnxruntime in use reads:
# onnx.helper.make_model(make_graph([make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y]),
# opset_imports=[make_opsetid("", 13)], ir_version=8).SerializeToString()
PROBE_MODEL = (
    b'\x08\x08:9\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x05probe'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02"
    b"B\x04\n\x00\x10\r"
)


@dataclass(frozen=True)
class Provider:
    """An ONNX Runtime execution provider: whether a session runs on it, else the reason."""

    name: str
    loads: bool
    reason: str = ""


@dataclass(frozen=True)
class Machine:
    """The computer; None where the system does not report a value.

    Attributes:
        name: board or processor.
        jetson_release: first line of /etc/nv_tegra_release; None if not a Jetson.
        num_cores: cores that this process may use, limited by a container's quota.
        cpu_quota: that quota, in cores; None if unlimited.
    """

    name: str
    architecture: str
    system: str
    jetson_release: str | None
    num_cores: int
    cpu_quota: float | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    disk_free_bytes: int | None


@dataclass(frozen=True)
class Compiler:
    """An installed TensorRT package: its name and version, or why it cannot be loaded.

    Attributes:
        compute_capabilities: those that it compiles for without such a GPU.
    """

    package: str
    name: str
    fault: str = ""
    compute_capabilities: tuple[str, ...] = ()


Result = TypeVar("Result")


def attempt(look: Callable[[], Result]) -> tuple[Result | None, str]:
    """The result of `look` and "", or None and why it failed."""
    try:
        with captured_stderr():
            return look(), ""
    except Exception as exc:  # a broken native library may raise anything
        return None, last_line(str(exc)) or type(exc).__name__


def look_at_machine() -> Machine:
    """The computer, its memory and the free disk space in the current folder."""
    memory, cores = sizes_in(MEMORY_INFO), cpu_cores()
    try:
        disk_free_bytes = shutil.disk_usage(".").free
    except OSError:  # the current folder was deleted
        disk_free_bytes = None
    return Machine(
        name=_machine_name(),
        architecture=platform.machine(),
        system=platform.platform(terse=True),
        jetson_release=_read(JETSON_RELEASE).partition("\n")[0] or None,
        num_cores=cores.usable,
        cpu_quota=cores.quota,
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def look_at_providers() -> tuple[Provider, ...]:
    """The execution providers of the installed onnxruntime, each tried."""
    import onnxruntime

    names = onnxruntime.get_available_providers()
    return tuple(_try_provider(name) for name in names if name not in REMOTE_PROVIDERS)


def _try_provider(name: str) -> Provider:
    """Run a session on it: without the provider's libraries onnxruntime falls back silently."""
    import onnxruntime

    with (
        captured_stderr() as captured,
        contextlib.redirect_stdout(io.StringIO()),
    ):  # prints both ways
        try:
            options = session_options(shares_arena=name == CPU_PROVIDER)
            options.log_severity_level = LOG_WARNINGS
            session = onnxruntime.InferenceSession(PROBE_MODEL, options, providers=[name])
            loads = session.get_providers()[0] == name
            failure = ""
        except Exception as exc:  # each provider has its own exceptions
            loads, failure = False, str(exc)
    return Provider(name, loads, "" if loads else _library_fault(failure or captured.text))


def _library_fault(log: str) -> str:
    """The missing library that ONNX Runtime's log names, else the log's last line."""
    log = re.sub(r"\x1b\[[0-9;]*m", "", log)  # the log is coloured even in a file
    fault = re.search(r"with error: (.+)$", log, re.MULTILINE)
    return fault.group(1).strip() if fault else last_line(log)


def look_at_opencv() -> tuple[str | None, dict[str, bool]]:
    """OpenCV's version, and whether it was built with `FFmpeg` and `GStreamer`."""
    import cv2

    built = re.findall(
        r"^\s+(FFMPEG|GStreamer):\s+(YES|NO)", cv2.getBuildInformation(), re.MULTILINE
    )
    backends = {name: answer == "YES" for name, answer in built}
    return cv2.__version__, {
        "FFmpeg": backends.get("FFMPEG", False),
        "GStreamer": backends.get("GStreamer", False),
    }


def look_at_cameras() -> "tuple[ListedCamera, ...]":
    """The cameras of this machine, each opened briefly."""
    from mod_edge.profiles import Camera
    from mod_edge.runtime.capture.camera_list import list_cameras

    return list_cameras(Camera())


def look_at_compilers(versions: Mapping[str, str | None]) -> tuple[Compiler, ...]:
    """The installed TensorRT packages, each loaded."""
    return tuple(_try_compiler(package) for package in MODULES if versions.get(package) is not None)


def _try_compiler(package: str) -> Compiler:
    try:
        with captured_stderr():
            tensorrt = load(MODULES[package])
    except BackendError as exc:
        return Compiler(package, package, str(exc.__cause__ or exc))
    return Compiler(package, tensorrt.name, "", tensorrt.compute_capabilities)


def look_at_gpu() -> tuple[Gpu | None, str]:
    """The GPU and "", or None and why none is usable."""
    try:
        return find_gpu(), ""
    except BackendError as exc:
        return None, str(exc)
