"""sd_notify, against a socket that stands for systemd's."""

import os
import socket
from contextlib import contextmanager

import pytest

from mod_edge.errors import ConfigError
from mod_edge.native.sd_notify import service_manager_of


@contextmanager
def listening(address):
    """A datagram socket at `address`, as systemd opens it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield listener


def test_without_a_service_manager_nothing_is_opened():
    assert service_manager_of({}) is None
    assert service_manager_of({"NOTIFY_SOCKET": ""}) is None


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_every_message_is_one_datagram(tmp_path, is_abstract):
    name = f"{'@' if is_abstract else ''}{tmp_path}/notify"
    with listening(f"\0{name[1:]}" if is_abstract else name) as listener:
        with service_manager_of({"NOTIFY_SOCKET": name}) as manager:
            assert manager.watchdog_s is None
            manager.ready()
            manager.show_status("7 frames\nREADY=0")
            manager.keep_alive()
        received = [listener.recv(4096) for _ in range(4)]
    assert received == [b"READY=1", b"STATUS=7 frames READY=0", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_status_that_names_a_path_which_is_not_utf8_is_sent(tmp_path):
    path = str(tmp_path / "notify")
    with listening(path) as listener, service_manager_of({"NOTIFY_SOCKET": path}) as manager:
        manager.show_status("caf\udce9.mp4: 7 frames")
        assert listener.recv(4096) == b"STATUS=caf?.mp4: 7 frames"


def test_a_manager_that_is_gone_or_does_not_read_stops_nobody(tmp_path):
    path = str(tmp_path / "notify")
    with service_manager_of({"NOTIFY_SOCKET": path}) as manager:
        manager.ready()
        with listening(path):
            for _ in range(2000):  # more than a socket's queue holds
                manager.keep_alive()


@pytest.mark.parametrize(
    ("variables", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({}, None),
    ],
    ids=["any process", "this process", "another process", "none"],
)
def test_the_watchdogs_time_counts_for_the_process_it_is_for(variables, watchdog_s):
    with service_manager_of({"NOTIFY_SOCKET": "/nowhere"} | variables) as manager:
        assert manager.watchdog_s == watchdog_s


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NOTIFY_SOCKET": "vsock:2:9"}, "NOTIFY_SOCKET=vsock:2:9, wanted a path or @NAME"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC=0, wanted microseconds"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1 s"}, "WATCHDOG_USEC=1 s, wanted"),
    ],
    ids=["other socket", "no time", "not a number"],
)
def test_what_systemd_does_not_set_is_an_error(variables, message):
    with pytest.raises(ConfigError, match=message):
        service_manager_of(variables)
