"""Real processes: signals, closed pipes, and machines without the exporter's packages."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from mod_edge.commands.arguments import PACKAGES_OF_EXTRA
from mod_edge.native.installed import install_command
from tests.bounded import TIMEOUT_S
from tests.commands.mod_edge_command import (
    LONG_VIDEO_FRAMES,
    finish,
    run_without,
    start,
    succeeds,
)

# ---- signals ----


STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_stream_with_its_summary_and_0(tiny_bundle, long_video, number):
    process = start("run", tiny_bundle, "--source", long_video, "--json", "--max-new-tokens", 4)
    first = process.next_line()
    process.send_signal(number)
    printed, errors = finish(process)
    events = [json.loads(line) for line in (first + printed).splitlines()]
    assert process.returncode == 0
    assert errors == ""
    assert events[0]["event"] == "frame"
    assert [event["event"] for event in events].count("summary") == 1
    assert events[-1]["event"] == "summary"
    frames = [event for event in events if event["event"] == "frame"]
    # a signal between counting and printing leaves one frame counted but not printed
    assert events[-1]["num_frames"] - len(frames) in (0, 1)
    assert 1 <= len(frames) < LONG_VIDEO_FRAMES


def test_under_nohup_a_stream_outlives_its_terminal(tiny_bundle, long_video):
    arguments = ("run", tiny_bundle, "--source", long_video, "--json", "--max-new-tokens", 4)
    process = start(*arguments, hang_up="SIG_IGN")
    process.next_line()
    process.send_signal(signal.SIGHUP)
    more = [json.loads(process.next_line()) for _ in range(200)]  # beyond what was buffered
    assert "summary" not in [event["event"] for event in more]
    process.send_signal(signal.SIGINT)
    printed, _ = finish(process)
    assert json.loads(printed.splitlines()[-1])["event"] == "summary"


def test_ctrl_c_ends_a_plain_stream_with_its_summary_too(tiny_bundle, long_video):
    process = start("run", tiny_bundle, "--source", long_video, "--verbose")
    process.next_line()
    process.send_signal(signal.SIGINT)
    printed, errors = finish(process)
    assert process.returncode == 0
    assert printed.splitlines()[-1].startswith("cache")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("number", "line"),
    [
        pytest.param(signal.SIGINT, "export: vision (0%)"),
        pytest.param(signal.SIGHUP, "export: vision (0%)"),
        pytest.param(signal.SIGINT, "export: layer-00 (10%)", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "export: layer-00 (10%)", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_during_an_export_leaves_nothing(tiny_checkpoint, tmp_path, number, line):
    process = start("export", tiny_checkpoint, "-o", tmp_path / "bundle")
    assert line in iter(lambda: process.stderr.readline().strip(), "")
    assert list(tmp_path.iterdir())  # the temporary folder is there
    process.send_signal(number)
    printed, errors = finish(process)
    assert process.returncode == 130
    assert printed == ""
    assert errors.splitlines()[-1] == "interrupted; no incomplete files were left"
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


# ---- pipes and terminals ----


@pytest.mark.parametrize("options", [("--json",), ("--verbose",)], ids=" ".join)
def test_a_closed_pipe_ends_the_run_without_a_traceback(tiny_bundle, long_video, options):
    process = start("run", tiny_bundle, "--source", long_video, *options)
    process.next_line()
    process.stdout.close()
    with process:
        process.stdout = None
        errors = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


@pytest.mark.parametrize("argument", ["--help", "--version", "targets"])
def test_a_full_disk_for_standard_output_is_one_line(argument):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "mod_edge", argument],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert result.returncode == 1
    assert result.stderr == (
        "error: the output cannot be written: No space left on device; free some space, or write "
        "to another disk\n"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_stream_runs_without_standard_streams(tiny_bundle, clip, closed):
    arguments = ("run", tiny_bundle, "--source", clip, "--max-frames", 2, "--json")
    process = start(*arguments, closed=closed)
    printed, errors = finish(process)
    assert process.returncode == 0, errors
    assert errors == ""
    assert printed.count("summary") == (0 if ">&-" in closed.split() else 1)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_exit_codes_and_errors_are_the_same_without_standard_streams(tmp_path, clip, closed):
    for arguments, code, message in (
        (("--help",), 0, ""),
        (("--version",), 0, ""),
        (("targets",), 0, ""),
        (("run", "--nonsense"), 2, "No such option"),
        (("run", tmp_path / "nowhere", "--source", clip), 1, "is not a bundle"),
    ):
        process = start(*arguments, closed=closed)
        _, errors = finish(process)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        if "2>&-" not in closed:
            assert message in errors


def test_a_file_never_gets_the_number_of_a_closed_standard_stream():
    script = (
        "import os, sys\n"
        "from mod_edge.commands.standard_streams import open_standard_streams\n"
        "open_standard_streams()\n"
        "print('discarded', file=sys.stdout)\n"
        "ok = os.open(os.devnull, os.O_RDONLY) > 2 and all(map(os.get_inheritable, range(3)))\n"
        "sys.exit(0 if ok else 'not open')\n"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(command, timeout=TIMEOUT_S, check=False).returncode == 0


def test_output_for_a_closed_terminal_is_discarded_and_other_output_is_not():
    script = (
        "import errno, os, pty\n"
        "from mod_edge.commands.standard_streams import leave_closed_terminal\n"
        "terminal, shown = pty.openpty()\n"
        "os.dup2(shown, 1)\n"
        "leave_closed_terminal()\n"
        "os.write(1, b'shown')\n"
        "assert os.read(terminal, 9) == b'shown'\n"
        "os.close(terminal)\n"
        "try:\n"
        "    os.write(1, b'lost')\n"
        "except OSError as exc:\n"
        "    assert exc.errno == errno.EIO\n"
        "leave_closed_terminal()\n"
        "os.write(1, b'discarded')\n"
        "os.write(2, b'kept')\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"kept")


def test_a_terminal_that_lacks_a_character_shows_its_code(tiny_bundle, clip):
    arguments = ("run", tiny_bundle, "--source", clip, "--max-frames", 1, "--query", "läuft → ?")
    process = start(*arguments, environment=[("PYTHONIOENCODING", "ascii")])
    printed, errors = finish(process)
    assert process.returncode == 0, errors
    assert r"query     l\xe4uft \u2192 ?" in printed
    assert printed.isascii()


def test_colours_are_only_for_terminals(tiny_bundle, clip):
    process = start("run", tiny_bundle, "--source", clip, "--max-frames", 2)
    printed, errors = finish(process)
    assert "\x1b" not in printed + errors


# ---- without the exporter's packages ----


@pytest.mark.parametrize(
    "arguments",
    [("init", "tiny", "new"), ("inspect", "tiny"), ("export", "checkpoint")],
    ids=lambda arguments: arguments[0],
)
def test_without_torch_the_exporters_commands_name_the_pip_command(arguments):
    result = run_without(["torch", "onnxscript"], *arguments)
    assert result.returncode == 1
    assert result.stderr == (
        "error: this command needs torch, onnxscript (not installed); install on the workstation, "
        f"not on the device: {install_command('cpu', 'export')}\n"
    )


def test_without_the_exporters_packages_a_bundle_runs(tiny_bundle, clip):
    packages = [name for name in PACKAGES_OF_EXTRA["export"] if name != "onnxruntime"]
    arguments = ("run", tiny_bundle, "--source", clip, "--max-frames", 3, "--json")
    result = run_without(packages, *arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["num_frames"] == 3


def test_without_the_exporters_packages_a_bundle_is_inspected(tiny_bundle):
    result = run_without(PACKAGES_OF_EXTRA["export"], "inspect", tiny_bundle)
    assert result.returncode == 0, result.stderr
    assert result.stdout == succeeds("inspect", tiny_bundle).stdout


def test_inspect_finds_a_changed_file_of_a_bundle(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    config = bundle / "config.json"
    config.write_text(config.read_text().replace('"keep_ratio": 0.2', '"keep_ratio": 0.3'))
    result = run_without(["torch"], "inspect", bundle)
    assert result.returncode == 1
    assert "config.json has changed since it was exported" in result.stderr


# ---- without a folder for temporary files ----


@pytest.mark.parametrize("command", ["run", "inspect", "doctor", "targets"])
def test_a_device_needs_no_folder_for_temporary_files(tiny_bundle, clip, command):
    arguments = {
        "run": (tiny_bundle, "--source", clip, "--max-frames", 2),
        "inspect": (tiny_bundle,),
    }
    result = run_without([], command, *arguments.get(command, ()), has_temporary=False)
    assert "emporary" not in result.stderr
    assert command == "doctor" or result.returncode == 0, result.stderr
    assert result.stdout


def test_a_device_replies_to_text_and_measures_its_perplexity_without_torch(tiny_bundle, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A man walks on the path.")
    for command, options in (("run", ("--query", "What?", "--json")), ("eval", ("--text", text))):
        result = run_without(["torch", "onnx", "safetensors"], command, tiny_bundle, *options)
        assert result.returncode == 0, result.stderr
        assert result.stdout


def test_without_torch_the_reference_backend_names_the_pip_command(tiny_bundle, clip):
    options = ("--backend", "torch", "--checkpoint", "checkpoint")
    result = run_without(["torch"], "run", tiny_bundle, "--source", clip, *options)
    assert result.returncode == 1
    assert install_command("export") in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_onnxruntime_a_run_names_the_pip_command(tiny_bundle, clip):
    result = run_without(["onnxruntime"], "run", tiny_bundle, "--source", clip)
    assert result.returncode == 1
    assert install_command("cpu") in result.stderr
    assert "Traceback" not in result.stderr
