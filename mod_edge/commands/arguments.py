"""Arguments that several commands share, and checks for the packages that a command needs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mod_edge.commands.console import printable
from mod_edge.errors import BackendError, ConfigError, ModEdgeError
from mod_edge.native.cpu_cores import cpu_cores
from mod_edge.native.installed import install_command, is_missing
from mod_edge.native.onnx_session import set_num_threads
from mod_edge.native.package_faults import require_files

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", show_default=True)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
DataOption = Annotated[Path, typer.Option(help="Data set folder: JSONL files and their videos.")]
DeviceOption = Annotated[str, typer.Option(help="Device for ONNX Runtime: auto, cpu or cuda.")]
OptionalProfileOption = Annotated[
    str | None,
    typer.Option(
        help="Device profile: name or TOML file; default: the one the engines were built with, "
        "or the first for the bundle's target."
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(help="KV cache window: seconds (120s) or tokens (4096); default: the profile's."),
]
KvBudgetOption = Annotated[
    float | None, typer.Option(help="KV cache budget in MiB; alternative to --window.")
]
ClipsOption = Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N clips.")]
ToleranceOption = Annotated[
    float, typer.Option(min=0, help="Largest time error of a correct reply, in seconds.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; default: one per core that this process may use."),
]
NewCheckpointArgument = Annotated[Path, typer.Argument(help="Checkpoint folder to create.")]
PhotographsOption = Annotated[
    Path | None, typer.Option(help="Video to crop photographic backgrounds from.")
]
DEFAULT_BUNDLE = Path("bundle")
PACKAGES_OF_EXTRA = {  # as imported
    "export": ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors"),
    "train": ("torch", "safetensors", "matplotlib"),
    "verify": ("polygraphy", "onnxruntime"),
}


def use_threads(count: int | None) -> None:
    """Compute with `count` CPU threads, or without a count with one per usable core.

    Call it before anything imports torch, which reads `OMP_NUM_THREADS` once. Without a count,
    PyTorch keeps its own default, which heeds everything but a CPU quota.

    Raises:
        BadParameter: more threads than the machine has cores; thousands would never end.
    """
    if count is not None:
        if count > (num_cores := os.cpu_count() or 1):
            raise typer.BadParameter(
                f"{count} threads, but this machine has {num_cores} cores", param_hint="--threads"
            )
        set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)
        return
    cores = cpu_cores()
    if cores.usable < cores.in_affinity:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores.usable))


def refuse_options(context: typer.Context, names: Sequence[str], needed: str) -> None:
    """Check that none of these options was given, because they have no effect here.

    Args:
        context: of the command.
        names: of its parameters.
        needed: the option without which they have no effect, with its value: "--data DATA".

    Raises:
        BadParameter: some were; the message names them all.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in names
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"{', '.join(given)} only with {needed}")


@contextmanager
def usage_errors(
    option: str | None = None, *, error: type[ModEdgeError] = ConfigError
) -> Iterator[None]:
    """Turn errors of the options' values into usage errors: the command exits with 2.

    systemd does not start a service again that exits with 2: a restart cannot repair its options.

    Args:
        option: the option at fault; None where the message names it.
        error: what to turn.

    Raises:
        BadParameter: in place of `error`.
    """
    try:
        yield
    except error as exc:
        raise typer.BadParameter(printable(str(exc)), param_hint=option) from exc


def require_extra(extra: str) -> None:
    """Check that the packages of an extra are installed.

    Args:
        extra: one of `PACKAGES_OF_EXTRA`.

    Raises:
        BackendError: some are missing, or their files are; the message names them and the pip
            command that installs them.
    """
    packages = PACKAGES_OF_EXTRA[extra]
    require_files(packages)
    missing = [name for name in packages if is_missing(name)]
    if missing:
        where = "" if extra == "verify" else " on the workstation, not on the device"
        raise BackendError(
            f"this command needs {', '.join(missing)} (not installed); install{where}: "
            + install_command("cpu", extra)
        )
