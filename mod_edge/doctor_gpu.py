"""What the doctor finds of TensorRT and of an NVIDIA GPU.

TensorRT is imported: only that shows whether its libraries load, and it is quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mod_edge.doctor_finding import Finding
from mod_edge.errors import BackendError
from mod_edge.export.gpu import Gpu, find_gpu
from mod_edge.export.trt import HOW_TO_INSTALL, load
from mod_edge.noise import captured_noise

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # by package


@dataclass(frozen=True)
class Compiler:
    """A TensorRT that is installed: its name and version, or why it does not load.

    Attributes:
        compute_capabilities: that it compiles for without such a GPU.
    """

    package: str
    name: str
    fault: str = ""
    compute_capabilities: tuple[str, ...] = ()


def look_at_compilers(versions: Mapping[str, str | None]) -> tuple[Compiler, ...]:
    """The TensorRTs among the installed packages."""
    return tuple(_try(package) for package in MODULES if versions.get(package) is not None)


def _try(package: str) -> Compiler:
    try:
        with captured_noise():
            tensorrt = load(MODULES[package])
    except BackendError as exc:
        return Compiler(package, package, str(exc.__cause__ or exc))
    return Compiler(package, tensorrt.name, "", tensorrt.compute_capabilities)


def look_at_gpu() -> tuple[Gpu | None, str]:
    """The GPU and "", or None and why there is none."""
    try:
        return find_gpu(), ""
    except BackendError as exc:
        return None, str(exc)


def judge_engines(
    compilers: tuple[Compiler, ...], gpu: Gpu | None, gpu_fault: str
) -> list[Finding]:
    """Findings about compiling and running engines; none where nobody asked for either."""
    findings = [_judge_compiler(compiler) for compiler in compilers]
    if gpu is not None:
        message = (
            f"{gpu.name}: compute capability {gpu.compute_capability}, "
            f"{gpu.memory_bytes / 2**30:.1f} GiB, driver for CUDA {gpu.cuda}"
        )
        findings.append(Finding("ok", message))
    elif compilers:
        findings.append(Finding("ok", f"engines do not run here: {gpu_fault}"))
    return findings


def _judge_compiler(compiler: Compiler) -> Finding:
    if compiler.fault:
        return Finding(
            "error",
            f"{compiler.package} is installed and does not load: {compiler.fault}",
            HOW_TO_INSTALL[MODULES[compiler.package]],
        )
    where = (
        f"compute capabilities {', '.join(compiler.compute_capabilities)}, without a GPU"
        if compiler.compute_capabilities
        else "the GPU of this machine"
    )
    return Finding("ok", f"{compiler.name} compiles engines for {where}")
