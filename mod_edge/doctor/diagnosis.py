"""What this machine can run and what it lacks: a finding per fact, with its fix."""

import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mod_edge.doctor.facts import (
    CPU_PROVIDER,
    MODULES,
    PACKAGES,
    Compiler,
    Machine,
    Provider,
    attempt,
    look_at_cameras,
    look_at_compilers,
    look_at_gpu,
    look_at_machine,
    look_at_opencv,
    look_at_providers,
)
from mod_edge.native.gpu import Gpu, dotted
from mod_edge.native.installed import install_command, installed_version
from mod_edge.native.int8_products import U8_BY_S8, exact_int8_products
from mod_edge.native.package_faults import (
    ONNXRUNTIME_PACKAGES,
    PackageFault,
    check_package,
    reinstall,
    uninstall_first,
)
from mod_edge.native.trt import how_to_install

if TYPE_CHECKING:
    from mod_edge.runtime.capture.camera_list import ListedCamera

MIN_FREE_BYTES = 2**30  # only toy models run with less

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One fact and whether it is a problem; `advice` says how to fix it (empty if ok)."""

    severity: Severity
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """The facts about a machine and the findings from them.

    Attributes:
        versions: by package, None if not installed; includes `python` and `opencv`.
        providers: execution providers of the installed onnxruntime.
        int8_products: see `exact_int8_products`; None if int8 weights cannot be multiplied.
        video_backends: whether OpenCV was built with `FFmpeg` and `GStreamer`.
        compilers: the installed TensorRT packages.
        gpu: the first usable NVIDIA GPU, or None.
    """

    versions: dict[str, str | None]
    machine: Machine
    providers: tuple[Provider, ...]
    int8_products: str | None
    video_backends: dict[str, bool]
    cameras: "tuple[ListedCamera, ...]"
    compilers: tuple[Compiler, ...]
    gpu: Gpu | None
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, tuples and scalars, for JSON."""
        return asdict(self)


def diagnose() -> Report:
    """Examine this machine; briefly opens each camera and each ONNX Runtime provider."""
    versions = {name: installed_version(name) for name in (*PACKAGES, *ONNXRUNTIME_PACKAGES)}
    versions["python"] = platform.python_version()
    machine = look_at_machine()
    onnxruntime_fault = check_package("onnxruntime")
    providers = None if onnxruntime_fault else attempt(look_at_providers)[0]
    has_cpu = any(each.name == CPU_PROVIDER and each.loads for each in providers or ())
    products, products_fault = attempt(exact_int8_products) if has_cpu else (None, "")
    opencv_fault = check_package("cv2")
    opencv = None if opencv_fault else attempt(look_at_opencv)[0]
    versions["opencv"], video_backends = opencv or (None, {})
    cameras = () if opencv_fault else attempt(look_at_cameras)[0] or ()
    compilers = look_at_compilers(versions)
    gpu, gpu_fault = look_at_gpu()
    has_engines = gpu is not None and any(not each.fault for each in compilers)
    findings = (
        *_check_packages(versions),
        *_check_onnxruntime(versions, onnxruntime_fault, has_engines=has_engines),
        *(_check_provider(provider, versions) for provider in providers or ()),
        *([_check_int8(products, products_fault)] if has_cpu else []),
        _check_video(versions["opencv"], video_backends, opencv_fault),
        _check_cameras(cameras),
        *check_engines(compilers, gpu, gpu_fault),
        *_check_machine(machine, versions),
    )
    return Report(
        versions=versions,
        machine=machine,
        providers=providers or (),
        int8_products=products,
        video_backends=video_backends,
        cameras=cameras,
        compilers=compilers,
        gpu=gpu,
        findings=findings,
    )


def _check_packages(versions: dict[str, str | None]) -> list[Finding]:
    missing = [name for name in ("numpy", "tokenizers") if versions[name] is None]
    if missing:
        message = f"{' and '.join(missing)} not installed: the base install is incomplete"
        return [Finding("error", message, install_command(options="--force-reinstall"))]
    faults = [fault for name in ("numpy", "tokenizers") if (fault := check_package(name))]
    return [Finding("error", fault.reason, fault.advice) for fault in faults]


def _check_onnxruntime(
    versions: dict[str, str | None], fault: PackageFault | None, *, has_engines: bool
) -> list[Finding]:
    found = [name for name in ONNXRUNTIME_PACKAGES if versions[name] is not None]
    if len(found) > 1:
        return [
            Finding(
                "error",
                f"{' and '.join(found)} are both installed and share the same files",
                uninstall_first(found) + _install_onnxruntime(),
            )
        ]
    if fault and not found and has_engines:
        message = "onnxruntime is not installed; --backend onnx and mod-edge verify need it"
        return [Finding("ok", message)]
    if fault and not found:
        message = "onnxruntime is not installed: no bundle can run on the CPU or with CUDA"
        return [Finding("error", message, _install_onnxruntime())]
    if fault:
        return [Finding("error", fault.reason, fault.advice)]
    name = found[0] if found else "onnxruntime"  # built from source: no metadata
    return [Finding("ok", f"{name} {versions.get(name) or '(built from source)'}")]


def _install_onnxruntime() -> str:
    return f"{install_command('cpu')} (for an NVIDIA GPU use the extra gpu instead of cpu)"


def _check_provider(provider: Provider, versions: dict[str, str | None]) -> Finding:
    if provider.loads:
        return Finding("ok", f"{provider.name} runs")
    if provider.name == CPU_PROVIDER:
        package = next(filter(versions.get, ONNXRUNTIME_PACKAGES), "onnxruntime")
        return Finding(
            "error",
            f"{provider.name} does not run: {provider.reason}",
            f"pip install --upgrade {package}, or {reinstall([package])}",
        )
    return Finding(
        "warning",
        f"{provider.name} is listed but cannot be loaded"
        + (f": {provider.reason}" if provider.reason else ""),
        "install the CUDA, cuDNN or TensorRT version that this onnxruntime was built for and add "
        "it to LD_LIBRARY_PATH; until then bundles run on the CPU",
    )


def _check_int8(products: str | None, fault: str) -> Finding:
    if products is None:
        reason, _, advice = fault.partition("; ")
        return Finding("warning", f"no bundle with int8 weights can run: {reason}", advice)
    if products == U8_BY_S8:
        return Finding("ok", f"int8 weights are multiplied as {products}")
    reason = f"this CPU's {U8_BY_S8} products are not exact"
    return Finding("ok", f"int8 weights are multiplied as {products}, slower: {reason}")


def _check_video(
    version: str | None, backends: dict[str, bool], fault: PackageFault | None
) -> Finding:
    if fault:
        return Finding("error", f"no video can be read: {fault.reason}", fault.advice)
    built = [name for name, is_built in backends.items() if is_built]
    if built:
        return Finding("ok", f"OpenCV {version} reads video with {' and '.join(built)}")
    return Finding(
        "error",
        f"OpenCV {version} was built without FFmpeg and GStreamer: no video file can be read",
        "pip install --force-reinstall opencv-python",
    )


def _check_cameras(cameras: "tuple[ListedCamera, ...]") -> Finding:
    open_ones = [camera.path for camera in cameras if camera.opens]
    if open_ones:
        return Finding("ok", f"camera at {', '.join(open_ones)}")  # others often hold metadata only
    if not cameras:
        return Finding("ok", "no camera is connected; files and network streams can be read")
    return Finding(
        "warning",
        f"none of the {len(cameras)} video devices can be opened",
        "close the program that uses the camera, and join the group: sudo usermod -aG video $USER; "
        "mod-edge cameras says more",
    )


def _check_machine(machine: Machine, versions: dict[str, str | None]) -> list[Finding]:
    findings = []
    for what, free_bytes, advice in (
        ("memory", machine.memory_available_bytes, "close other programs or add swap"),
        ("disk", machine.disk_free_bytes, "free some space, or work in a folder on another disk"),
    ):
        if free_bytes is not None and free_bytes < MIN_FREE_BYTES:
            message = f"only {free_bytes / 2**20:.0f} MiB of {what} are free"
            findings.append(Finding("warning", message, advice))
    if machine.jetson_release and versions["tensorrt"] is None:
        findings.append(
            Finding(
                "warning",
                "this Python cannot see the Jetson's TensorRT",
                "apt-get install python3-libnvinfer, and create the virtual environment with "
                "python3 -m venv --system-site-packages",
            )
        )
    return findings


def check_engines(
    compilers: tuple[Compiler, ...], gpu: Gpu | None, gpu_fault: str
) -> list[Finding]:
    """Findings about building and running engines; none if there is neither TensorRT nor a GPU."""
    findings = [_check_compiler(compiler) for compiler in compilers]
    if gpu is not None:
        message = (
            f"{gpu.name}: compute capability {dotted(gpu.compute_capability)}, "
            f"{gpu.memory_bytes / 2**30:.1f} GiB, driver for CUDA {gpu.cuda}"
        )
        findings.append(Finding("ok", message))
    elif compilers:
        findings.append(Finding("ok", f"engines cannot run here: {gpu_fault}"))
    return findings


def _check_compiler(compiler: Compiler) -> Finding:
    if compiler.fault:
        return Finding(
            "error",
            f"{compiler.package} is installed but cannot be loaded: {compiler.fault}",
            how_to_install(MODULES[compiler.package]),
        )
    capabilities = ", ".join(map(dotted, compiler.compute_capabilities))
    where = (
        f"compute capabilities {capabilities}, without a GPU"
        if capabilities
        else "this machine's GPU"
    )
    return Finding("ok", f"{compiler.name} compiles engines for {where}")
