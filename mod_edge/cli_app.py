"""The application that the commands of `cli` hang on, with the options and refusals they share."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mod_edge import __version__
from mod_edge.console import out
from mod_edge.errors import BackendError

EXIT_CODES = (
    "Exit codes: 0 done (also when Ctrl-C or the end of the video ended a run), 1 an error that is "
    "explained in one line, 2 wrong usage, 130 Ctrl-C before a command was done."
)

app = typer.Typer(
    name="mod-edge",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
DEFAULT_BUNDLE = Path("bundle")
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        out.print(f"mod-edge {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,  # before a command is found missing
        ),
    ] = False,
) -> None:
    """Train VideoLLM-MoD checkpoints, export them to ONNX and stream video on the device."""


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
            f'pip install "mod-edge[cpu,{extra}]"'
        )
