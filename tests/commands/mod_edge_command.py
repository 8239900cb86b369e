"""`mod-edge` as tests call it: within this process, or in a process of its own."""

import os
import subprocess
import sys

from typer.testing import CliRunner

from mod_edge.commands.app import app
from tests.bounded import TIMEOUT_S, BoundedProcess

LONG_VIDEO_FRAMES = 4000  # of the fixture `long_video`: all of them would take half a minute
# A test run in the background ignores Ctrl-C, one under nohup SIGHUP; processes inherit that.
START = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))\n"
    "from mod_edge.commands import console\n"
    "from mod_edge.commands.app import app\n"
    "console.SECONDS_PER_LINE = 0\n"  # a line of progress for every step
    "app(prog_name='mod-edge')\n"
)
# A Python without these packages and pip's records of them, and perhaps without a temporary folder.
WITHOUT = (
    "import sys, tempfile\n"
    "from importlib import metadata\n"
    "hidden, found = list(filter(None, sys.argv.pop(1).split(','))), metadata.version\n"
    "def version(package):\n"
    "    if package in hidden:\n"
    "        raise metadata.PackageNotFoundError(package)\n"
    "    return found(package)\n"
    "metadata.version = version\n"
    "for name in hidden:\n"
    "    sys.modules[name] = None\n"
    "def fails():\n"
    "    raise FileNotFoundError(2, 'No usable temporary directory found')\n"
    "if sys.argv.pop(1) == 'False':\n"
    "    tempfile.gettempdir = fails\n"
    "from mod_edge.commands.app import app\n"
    "app(prog_name='mod-edge')\n"
)


def invoke(*arguments):
    """The result of a command, whatever its exit code."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments):
    """The result of a command that must exit with 0."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def start(*arguments, environment=(), closed="", hang_up="SIG_DFL", stdin=None):
    """A running process of `mod-edge` with its output piped; a `BoundedProcess`.

    Args:
        arguments: of the command.
        environment: more variables.
        closed: the standard streams to close, as in a shell: ">&- 2>&-".
        hang_up: how it handles SIGHUP at first, "SIG_DFL" or "SIG_IGN".
        stdin: its standard input, as for `subprocess`; by default that of the tests.
    """
    python = [sys.executable, "-c", START, hang_up]
    return BoundedProcess(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *python, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)},
    )


def finish(process):
    """What the process printed to stdout and stderr before it ended."""
    with process:
        try:
            return process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()


def run_without(packages, *arguments, has_temporary=True):
    """The finished process of `mod-edge` in a Python that cannot import `packages`.

    Without `has_temporary` there is no folder for temporary files, as on a read-only file system.
    """
    return subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT,
            ",".join(packages),
            str(has_temporary),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
