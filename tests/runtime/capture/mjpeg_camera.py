"""A network camera that sends numbered pictures over HTTP."""

import http.server
import math
import threading

import cv2

from tests.runtime.capture.numbered_video import picture_of


class MjpegServer(http.server.ThreadingHTTPServer):
    """A network camera: numbered pictures in one multipart response, without an end by default."""

    daemon_threads = True

    def __init__(self, fps=40.0, burst=0, bad=None, num_pictures=math.inf):
        super().__init__(("127.0.0.1", 0), MjpegHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/camera.mjpg"
        self.fps = fps
        self.burst = burst  # pictures sent at once, before the rate holds
        self.bad = bad or {}  # what is sent instead of a picture, by its number
        self.num_pictures = num_pictures
        self.num_sent = 0
        self.is_silent = threading.Event()
        self.is_over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return super().__enter__()

    def __exit__(self, *exc_info):
        self.is_over.set()
        self.shutdown()
        super().__exit__(*exc_info)


class MjpegHandler(http.server.BaseHTTPRequestHandler):
    """Serves the server's pictures at every address."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        camera = self.server
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        try:
            while not camera.is_over.is_set() and camera.num_sent < camera.num_pictures:
                if not camera.is_silent.is_set():
                    self.send_picture(camera.num_sent)
                    camera.num_sent += 1
                if camera.num_sent >= camera.burst:
                    camera.is_over.wait(1 / camera.fps)
        except ConnectionError:
            pass  # the client has disconnected

    def send_picture(self, number):
        good = cv2.imencode(".jpg", picture_of(number))[1].tobytes()
        jpeg = self.server.bad.get(number, good)
        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        self.wfile.write(head.encode() + jpeg + b"\r\n")
