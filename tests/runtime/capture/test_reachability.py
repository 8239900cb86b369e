"""Why an address does not open, from a connection of our own."""

import socket

import pytest

from mod_edge.errors import SourceError
from mod_edge.runtime.capture.open_live import open_live
from mod_edge.runtime.capture.opencv import open_unredirected
from mod_edge.runtime.capture.reachability import connection_reason
from mod_edge.runtime.capture.source_name import parse_source
from tests.runtime.capture.mjpeg_camera import MjpegServer


@pytest.fixture
def closed_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("password", ["secret", "se/cr@et"])
def test_a_server_that_is_not_there_is_a_reason_without_credentials(closed_port, password):
    reason = connection_reason(f"rtsp://me:{password}@127.0.0.1:{closed_port}/a")
    assert reason == f" (127.0.0.1, port {closed_port}: Connection refused)"


def test_a_name_that_is_not_known_is_a_reason(monkeypatch):
    def fails(*_arguments, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fails)
    assert connection_reason("rtsp://cam/1") == " (cam, port 554: Name or service not known)"


def test_a_server_that_is_there_leaves_the_user_the_password_and_the_path():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        says = f" (127.0.0.1 answers at port {port})"
        assert connection_reason(f"http://127.0.0.1:{port}/a") == says


@pytest.mark.parametrize("url", ["udp://127.0.0.1:1", "rtsp://", "rtsp://cam:port/", "rtsp://[/"])
def test_what_no_connection_can_be_made_to_has_no_reason(url):
    assert connection_reason(url) == ""


@pytest.mark.live
def test_an_opening_that_must_leave_standard_error_alone_has_a_reason_too(closed_port):
    with MjpegServer() as camera:
        camera.is_down.set()
        for url, says in (
            (f"rtsp://127.0.0.1:{closed_port}/a", "Connection refused"),
            (camera.url, f"127.0.0.1 answers at port {camera.server_port}"),
        ):
            with pytest.raises(SourceError) as caught:
                open_live(parse_source(url), read_timeout_s=1, opener=open_unredirected)
            assert f"{url} cannot be opened (" in str(caught.value)
            assert says in str(caught.value)
