"""Why an address does not open, where FFmpeg's own reason is not known.

FFmpeg only prints its reasons: nothing is printed unless the user asks for it, and while a stream
runs standard error cannot be redirected to read them.
"""

import socket
from urllib.parse import urlsplit

from mod_edge.runtime.capture.redaction import without_credentials

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtmp": 1935}
TIMEOUT_S = 2.0


def connection_reason(url: str) -> str:
    """What a connection to the server says, as ` (reason)`; empty where none can be made."""
    try:
        address = urlsplit(without_credentials(url))  # a password may hold an @ or a slash
        host, port = address.hostname, address.port or PORTS.get(address.scheme)
    except ValueError:  # no port, or no host, as it is written
        return ""
    if not host or port is None or address.scheme not in PORTS:
        return ""
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except OSError as exc:
        return f" ({host}, port {port}: {exc.strerror or exc})"
    return f" ({host} answers at port {port})"
