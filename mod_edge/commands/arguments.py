"""Arguments that several commands take, and what they refuse to start without."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mod_edge.errors import BackendError
from mod_edge.native.installed import install_command

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
DataOption = Annotated[Path, typer.Option(help="Data set: JSONL files and their videos.")]
DEFAULT_BUNDLE = Path("bundle")
TRAIN_PACKAGES = ("torch", "safetensors", "matplotlib")
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")


@contextmanager
def explained_imports() -> Iterator[None]:
    """Explain what is installed and does not load: a native library of OpenCV's, most often.

    Raises:
        BackendError: an import within failed.
    """
    try:
        yield
    except ImportError as exc:
        raise BackendError(f"a package does not load: {exc}; see: mod-edge doctor") from exc


def require_export_extra() -> None:
    """Name what is missing of the extra that only a workstation needs.

    Raises:
        BackendError: something is.
    """
    require_packages(EXPORT_PACKAGES, "on the machine where checkpoints are exported", "export")


def require_packages(packages: Sequence[str], place: str, extra: str) -> None:
    """Name those of `packages` that are not installed, and the pip line that installs them.

    Args:
        packages: names to import.
        place: where, or how, to install them.
        extra: the one that has them.

    Raises:
        BackendError: some are missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(
            f"this command needs {', '.join(missing)}, not installed here; {place}: "
            + install_command("cpu", extra)
        )
