"""The `mod-edge` application: its commands in the order that `--help` lists them."""

import sys
from typing import Annotated, Any

import typer

from mod_edge import __version__
from mod_edge.commands.bench import bench
from mod_edge.commands.build import build
from mod_edge.commands.cameras import cameras
from mod_edge.commands.console import EXIT_ERROR, out, print_os_error
from mod_edge.commands.doctor import doctor
from mod_edge.commands.eval import evaluate
from mod_edge.commands.export import export
from mod_edge.commands.import_ import import_
from mod_edge.commands.init import init
from mod_edge.commands.inspect import inspect
from mod_edge.commands.pretrain import pretrain
from mod_edge.commands.run import run
from mod_edge.commands.scenes import scenes
from mod_edge.commands.standard_streams import open_standard_streams
from mod_edge.commands.targets import targets
from mod_edge.commands.threshold import threshold
from mod_edge.commands.train import train
from mod_edge.commands.verify import verify

EXIT_CODES = (
    "Exit codes: 0 success, also when Ctrl-C or the end of the video stops a run; 1 error; "
    "2 usage error; 130 interrupted by Ctrl-C."
)


class Application(typer.Typer):
    """The commands."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line, `--help` too, also where standard streams are closed."""
        open_standard_streams()
        try:
            return super().__call__(*args, **kwargs)
        except OSError as exc:  # from --help or --version: commands report their own
            print_os_error(exc)
            sys.exit(EXIT_ERROR)


app = Application(
    name="mod-edge",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
            help="Show the version and exit.",
            callback=_print_version,
            is_eager=True,  # before typer reports a missing command
        ),
    ] = False,
) -> None:
    """Train VideoLLM-MoD checkpoints, export them to ONNX and TensorRT, and run them on video."""


NAMES = {import_: "import", evaluate: "eval"}  # of the commands whose functions cannot have them

for command in (
    init,
    import_,
    inspect,
    scenes,
    pretrain,
    train,
    threshold,
    evaluate,
    export,
    targets,
    build,
    run,
    cameras,
    bench,
    verify,
    doctor,
):
    app.command(NAMES.get(command), epilog=EXIT_CODES)(command)
