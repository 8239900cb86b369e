"""docs/unattended.md: its unit file and its logrotate file are valid."""

import re
import shlex
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import pytest
from typer.main import get_command

from mod_edge.commands.app import app

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "unattended.md").read_text()
(UNIT,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
(LOGROTATE,) = re.findall(r"```text\n(/var/log/.*?)```", PAGE, re.DOTALL)


def setting(name):
    """The value of a setting of the unit's [Service] or [Unit]."""
    parser = RawConfigParser(strict=True)
    parser.optionxform = str
    parser.read_string(UNIT)
    return parser["Unit"].get(name) or parser["Service"][name]


def run(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze; on Debian: apt-get install systemd")
    unit = tmp_path / "mod-edge.service"
    program = shlex.split(setting("ExecStart"))[0]
    unit.write_text(UNIT.replace(program, sys.executable).replace("/opt/mod-edge", "/"))
    done = run(["systemd-analyze", "verify", "--man=no", unit])
    about_it = [line for line in done.stderr.splitlines() if "mod-edge.service" in line]
    assert about_it == []


def test_logrotate_accepts_the_file(tmp_path):
    if shutil.which("logrotate") is None:
        pytest.skip("needs logrotate; on Debian: apt-get install logrotate")
    rotation = tmp_path / "mod-edge"
    rotation.write_text(LOGROTATE.replace("/var/log/mod-edge", str(tmp_path)))
    done = run(["logrotate", "--debug", "--state", tmp_path / "state", rotation])
    assert "error" not in done.stderr
    assert "events.jsonl" in done.stderr


def test_every_option_of_the_run_exists():
    known = {option for each in get_command(app).commands["run"].params for option in each.opts}
    used = {word for word in shlex.split(setting("ExecStart")) if word.startswith("--")}
    assert used <= known
    assert {"--reconnect", "--events"} <= used


def test_the_watchdog_waits_longer_than_the_reconnection():
    options = shlex.split(setting("ExecStart"))
    reconnect = options[options.index("--reconnect") + 1]
    assert int(setting("WatchdogSec")) > int(reconnect.removesuffix("s"))
    assert setting("Type") == "notify"
    assert setting("Restart") == "on-failure"


def test_the_rotated_file_is_the_services_and_its_reload_reopens_it():
    options = shlex.split(setting("ExecStart"))
    assert LOGROTATE.startswith(options[options.index("--events") + 1])
    assert "systemctl reload mod-edge.service" in LOGROTATE
    assert "-HUP" in setting("ExecReload")


def test_no_setting_takes_cameras_or_the_gpu_away():
    settings = set(re.findall(r"^(\w+)=", UNIT, re.MULTILINE))
    assert not settings & {"PrivateDevices", "ProtectClock", "DevicePolicy"}
    assert "MemoryDenyWriteExecute" not in settings
    assert setting("SupplementaryGroups") == "video render"
