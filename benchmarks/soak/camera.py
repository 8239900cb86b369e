"""`python -m benchmarks.soak.camera VIDEO`: a network camera that plays a video for ever.

It sends MJPEG over HTTP on a free port, prints its address, and ends when stdin does; a number of
seconds on stdin has it pause. It is a process of its own, so that the measured one has only the
memory and the work of a real stream.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, TextIO

import cv2
import typer

from mod_edge.errors import ModEdgeError
from mod_edge.runtime import VideoFile

ROOT = Path(__file__).resolve().parent.parent.parent
VIDEO_FPS = 2.0  # of the pictures in the video: what the model is made for
WAIT_S = 10.0


class Camera(ThreadingHTTPServer):
    """Sends `jpegs` in turn at `fps`, and nothing until `silent_until_s` of time.monotonic()."""

    daemon_threads = True

    def __init__(self, jpegs: Sequence[bytes], fps: float) -> None:
        super().__init__(("127.0.0.1", 0), Pictures)
        self.jpegs, self.fps = jpegs, fps
        self.silent_until_s = 0.0


class Pictures(BaseHTTPRequestHandler):
    """Answers every request with pictures, until the client disconnects."""

    server: Camera

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Send pictures at the camera's rate."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self._send_pictures()

    def _send_pictures(self) -> None:
        camera, number, due_s = self.server, 0, time.monotonic()
        while True:
            jpeg = camera.jpegs[number % len(camera.jpegs)]
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
            number += 1
            # A camera that was held up does not send later pictures faster.
            due_s = max(due_s + 1 / camera.fps, time.monotonic(), camera.silent_until_s)
            time.sleep(max(0.0, due_s - time.monotonic()))


@dataclass(frozen=True)
class CameraProcess:
    """A camera at work at `address`, and what it reads."""

    address: str
    stdin: TextIO

    def pause(self, seconds: float) -> None:
        """Have it send nothing for so long."""
        self.stdin.write(f"{seconds}\n")
        self.stdin.flush()


@contextmanager
def serve_video(video: Path, *, fps: float) -> Iterator[CameraProcess]:
    """A camera in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "benchmarks.soak.camera", video.resolve(), "--fps", fps]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise ModEdgeError(f"the camera that plays {video} has ended; its error is above")
            yield CameraProcess(address, process.stdin)
        finally:
            process.stdin.close()
            process.wait(WAIT_S)


def main(
    video: Annotated[Path, typer.Argument(help="Video whose pictures are sent in turn.")],
    fps: Annotated[float, typer.Option(help="Pictures per second.")],
) -> None:
    """Serve the video until stdin ends."""
    with VideoFile(video, fps=VIDEO_FPS) as frames:
        jpegs = [cv2.imencode(".jpg", frame.image)[1].tobytes() for frame in frames]
    camera = Camera(jpegs, fps)
    threading.Thread(target=camera.serve_forever, daemon=True).start()
    typer.echo(f"http://127.0.0.1:{camera.server_port}/soak.mjpg")
    for line in sys.stdin:
        camera.silent_until_s = time.monotonic() + float(line)


if __name__ == "__main__":
    typer.run(main)
