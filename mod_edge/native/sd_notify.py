"""Tell a service manager how the process is: systemd's notification protocol, sd_notify(3).

systemd names a datagram socket in NOTIFY_SOCKET; each datagram has lines such as `READY=1`. With
`WatchdogSec=` it also sets WATCHDOG_USEC, and restarts a service that sends no `WATCHDOG=1` for
that long.
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager

from mod_edge.errors import ConfigError


class ServiceManager(AbstractContextManager["ServiceManager"]):
    """The socket of the service manager; a context manager, whose end tells that the process stops.

    A datagram that cannot be sent is dropped: a manager that restarts must not end its services.

    Attributes:
        watchdog_s: seconds without `keep_alive` after which it restarts the process; None if it
            does not watch it.
    """

    def __init__(self, address: str, watchdog_s: float | None) -> None:
        self.watchdog_s = watchdog_s
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def __exit__(self, *_exc: object) -> None:
        self._send("STOPPING=1")
        self._socket.close()

    def ready(self) -> None:
        """The process has started up: `Type=notify` services count as started from here on."""
        self._send("READY=1")

    def show_status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())}")

    def keep_alive(self) -> None:
        """The process works: restarts the watchdog's time."""
        self._send("WATCHDOG=1")

    def _send(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(line.encode(errors="replace"), self._address)


def service_manager_of(environment: Mapping[str, str]) -> ServiceManager | None:
    """The service manager that started this process; None without NOTIFY_SOCKET.

    Raises:
        ConfigError: a variable has a value that systemd does not set.
    """
    named = environment.get("NOTIFY_SOCKET", "")
    if not named:
        return None
    if named[0] not in "/@":
        raise ConfigError(
            f"NOTIFY_SOCKET={named}, wanted a path or @NAME of a datagram socket; "
            "leave the variable to systemd"
        )
    # "@" stands for the null byte that begins a name in Linux's abstract namespace.
    address = f"\0{named[1:]}" if named[0] == "@" else named
    return ServiceManager(address, _watchdog_s(environment))


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """None without a watchdog, or if it is for another process: a child inherits the variables."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environment.get("WATCHDOG_USEC")
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(
            f"WATCHDOG_USEC={text}, wanted microseconds above 0; leave the variable to systemd"
        )
    return int(text) / 1e6
