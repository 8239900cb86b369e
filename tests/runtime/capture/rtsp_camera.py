"""An RTSP camera at rtsp://127.0.0.1:PORT/camera: rtsp_camera.py [PORT]; writes PORT to stdout.

A script for Debian's Python, which has gi; exits with `MISSING` where a package is missing.
"""

import sys

MISSING = 77
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)
ELEMENTS = "videotestsrc ! video/x-raw,width=64,height=48,framerate=25/1 ! x264enc ! rtph264pay"


def serve():
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstRtspServer", "1.0")
        from gi.repository import GLib, Gst, GstRtspServer
    except (ImportError, ValueError):
        return MISSING
    Gst.init(None)
    names = [element.split(",")[0].strip() for element in ELEMENTS.split("!")]
    if not all(Gst.ElementFactory.find(name) for name in names if "/" not in name):
        return MISSING
    source, size, encoder, packets = ELEMENTS.split("!")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( {source} is-live=1 ! {size} ! {encoder} tune=zerolatency key-int-max=5 "
        f"! {packets} name=pay0 pt=96 )"
    )
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1] if len(sys.argv) > 1 else "0")
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()
    return 0


if __name__ == "__main__":
    sys.exit(serve())
