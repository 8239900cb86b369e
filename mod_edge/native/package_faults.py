"""Packages that do not load: which one it is, why, and the command that repairs it.

`explained_imports` tells such a package from a fault of ours: an exception that was raised while
the package was being imported is the package's, also if the import is deep in a command. A name
that this code misspells raises where this code stands, from a package that has loaded.
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType, TracebackType

from mod_edge.errors import BackendError
from mod_edge.native.captured_stderr import captured_stderr
from mod_edge.native.installed import install_command, installed_version, is_missing

# All of these install the same module, `onnxruntime`.
ONNXRUNTIME_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-trt-rtx",
)
OPENCV_PACKAGES = (  # these install `cv2`
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
PACKAGES_OF_MODULE = {
    "numpy": ("numpy",),
    "cv2": OPENCV_PACKAGES,
    "tokenizers": ("tokenizers",),
    "onnxruntime": ONNXRUNTIME_PACKAGES,
    "torch": ("torch",),
    "safetensors": ("safetensors",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnx_graphsurgeon": ("onnx-graphsurgeon",),
    "polygraphy": ("polygraphy",),
    "matplotlib": ("matplotlib",),
}
EXTRA_OF_MODULE = {  # of pyproject.toml; modules that are missing here are in the base install
    "onnxruntime": "cpu",
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_graphsurgeon": "export",
    "polygraphy": "verify",
    "matplotlib": "train",
}

_OLD_SYSTEM = re.compile(r"GLIBC|CXXABI")
_OTHER_NUMPY = re.compile(
    r"_ARRAY_API|numpy\.(_?core\.)?(multiarray|dtype size)|compiled using NumPy"
)
_NO_DESKTOP = re.compile(r"lib(GL|EGL|gthread|glib|SM|ICE|X|xcb)\S*\.so")


@dataclass(frozen=True)
class PackageFault:
    """Why a package cannot be used, and how to repair it."""

    reason: str
    advice: str


@contextlib.contextmanager
def explained_imports(need: str = "") -> Iterator[None]:
    """Report a package that is missing or cannot be imported in one line.

    Args:
        need: beginning of the message, for which the package is needed.

    Raises:
        BackendError: an import in the block failed; says what to do.
    """
    try:
        yield
    except Exception as exc:
        module = _failed_module(exc)
        if module is None:
            raise
        fault = package_fault(module, exc)
        raise BackendError(f"{need}{': ' if need else ''}{fault.reason}; {fault.advice}") from exc


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Show what libraries print to stderr while they are imported only if they can be imported.

    NumPy prints a traceback of its own when a package was built for another NumPy.
    """
    with captured_stderr() as captured:
        yield
    if captured.text:  # sys.stderr is None in a process without one
        sys.stderr.write(captured.text)


def check_package(module: str) -> PackageFault | None:
    """The fault of a package, one of `PACKAGES_OF_MODULE`, which is imported to see it."""
    try:
        # OpenCV prints to both
        with captured_stderr(), contextlib.redirect_stdout(io.StringIO()):
            loaded = import_module(module)
    except Exception as exc:  # a broken native library may raise anything
        return package_fault(module, exc)
    return package_fault(module, None) if _has_no_files(loaded) else None


def require_files(modules: Iterable[str]) -> None:
    """Check that no package lost its files to the removal of another that shared them.

    Raises:
        BackendError: pip lists a package whose module is missing.
    """
    for module in modules:
        if is_missing(module) and _installed(module):
            fault = package_fault(module, None)
            raise BackendError(f"{fault.reason}; {fault.advice}")


def package_fault(module: str, exc: Exception | None) -> PackageFault:
    """What is wrong with a package whose import failed.

    Args:
        module: one of `PACKAGES_OF_MODULE`.
        exc: from the import; None if it gave an empty module.
    """
    installed = _installed(module)
    if exc is None or is_missing(module):
        if installed:
            name = f"{installed[0]} {installed_version(installed[0])}"
            reason = f"{name} is installed, but its files are missing"
            return PackageFault(reason, reinstall(installed))
        extra = EXTRA_OF_MODULE.get(module)
        command = install_command(*([extra] if extra else []))
        return PackageFault(f"{module} is not installed", f"install it with: {command}")
    name = f"{installed[0]} {installed_version(installed[0])}" if installed else module
    reason = last_line(str(exc)) or type(exc).__name__
    advice = _advice(module, installed, exc, reason)
    return PackageFault(f"{name} cannot be imported: {reason}", advice)


def package_of(module: str) -> str:
    """The installed package that provides a module, else the usual one."""
    return (*_installed(module), *PACKAGES_OF_MODULE[module])[0]


def replace_onnxruntime(extra: str) -> str:
    """The commands that leave one package with the module `onnxruntime`.

    Packages that share files must all be removed first: pip would find the wanted one installed
    and leave it without the files that were removed with another.

    Args:
        extra: "cpu" or "gpu".
    """
    found = _installed("onnxruntime")
    return (uninstall_first(found) if found else "") + install_command(extra)


def uninstall_first(packages: list[str]) -> str:
    """The beginning of the commands that replace `packages`."""
    return f"pip uninstall -y {' '.join(packages)}, then "


def reinstall(packages: list[str]) -> str:
    """The command that restores the files of a package, or of the first that share them.

    Without --force-reinstall pip would answer that the package is there already.
    """
    remove = uninstall_first(packages) if len(packages) > 1 else ""
    return f"{remove}pip install --force-reinstall --no-deps {packages[0]}"


def last_line(text: str) -> str:
    """The last line that is not blank: in long messages of native libraries, the reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _installed(module: str) -> list[str]:
    return [name for name in PACKAGES_OF_MODULE[module] if installed_version(name)]


def _advice(module: str, installed: list[str], exc: Exception, reason: str) -> str:
    package = package_of(module)
    if _OTHER_NUMPY.search(reason):
        return (
            f"it was built for another NumPy than {installed_version('numpy') or 'the one here'}: "
            f'pip install --upgrade {package}, or pip install "numpy<2" if it needs NumPy 1'
        )
    if not installed:
        return f"it was not installed by pip: install it again as it was, or pip install {package}"
    if _OLD_SYSTEM.search(reason):
        return (
            f"this system's C or C++ library is older than {package} needs: use a newer system, or "
            f'an older release: pip install "{package}<{installed_version(package)}"'
        )
    if module == "cv2" and _NO_DESKTOP.search(reason):
        return (
            "on a machine without a desktop: apt-get install libgl1 libglib2.0-0, or "
            f"pip uninstall -y {package} and pip install opencv-python-headless"
        )
    if isinstance(exc, ModuleNotFoundError) and is_missing((exc.name or module).partition(".")[0]):
        return f"its dependencies are incomplete, install them with: pip install {package}"
    return reinstall(installed)


def _failed_module(exc: Exception) -> str | None:
    """The package of `PACKAGES_OF_MODULE` that `exc` says cannot be imported, if any."""
    named = ""
    if isinstance(exc, ImportError):
        named = exc.name or ""
    elif isinstance(exc, AttributeError) and isinstance(exc.obj, ModuleType):
        named = exc.obj.__name__
    package = named.partition(".")[0]
    beyond = _frames_beyond_ours(exc.__traceback__)
    if beyond:
        caller, function = beyond[0]
        if caller not in PACKAGES_OF_MODULE:
            return None
        if isinstance(exc, ImportError):  # perhaps of another package, such as torch's onnxscript
            return package if package in PACKAGES_OF_MODULE else caller
        return caller if function == "<module>" else None
    # raised where this code stands: only an absent or empty module is no fault of ours
    loaded = sys.modules.get(package)
    is_broken = loaded is None or _has_no_files(loaded)
    return package if is_broken and package in PACKAGES_OF_MODULE else None


def _frames_beyond_ours(traceback: TracebackType | None) -> list[tuple[str, str]]:
    """(top-level package, function) of every call after the last one in this package.

    Python removes most of the import system's own frames; `import_module` has some.
    """
    frames: list[tuple[str, str]] = []
    while traceback is not None:
        frame = traceback.tb_frame
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == __name__.partition(".")[0]:
            frames.clear()
        elif package not in ("importlib", "_frozen_importlib"):
            frames.append((package, frame.f_code.co_name))
        traceback = traceback.tb_next
    return frames


def _has_no_files(module: ModuleType) -> bool:
    """Whether it is the empty module that Python makes of a left-over folder."""
    return getattr(module, "__file__", None) is None
