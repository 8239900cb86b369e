"""A network camera that sends numbered pictures over HTTP."""

import math
import random
import threading

import cv2

from tests.runtime.capture.local_server import LocalHandler, LocalServer
from tests.runtime.capture.numbered_video import picture_of

GARBAGE = random.Random(0).randbytes(700)


class MjpegServer(LocalServer):
    """A network camera: numbered pictures in one multipart response, without an end by default."""

    def __init__(self, fps=40.0, burst=0, bad=None, num_pictures=math.inf):
        super().__init__(MjpegHandler)
        self.url = f"http://{self.address}/camera.mjpg"
        self.fps = fps
        self.burst = burst  # pictures sent at once, before the rate holds
        self.bad = bad or {}  # what is sent instead of a picture, by its number
        self.num_pictures = num_pictures
        self.num_sent = 0
        self.is_silent = threading.Event()
        self.is_down = threading.Event()  # ends every answer and refuses new ones
        self.is_garbled = threading.Event()  # sends bytes that are no pictures
        self.scale = 1  # of the pictures' sides


class MjpegHandler(LocalHandler):
    """Serves the server's pictures at every address."""

    def answer(self):
        camera = self.server
        if camera.is_down.is_set():
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        while not self.has_ended():
            if camera.is_garbled.is_set():
                self.wfile.write(GARBAGE)
            elif not camera.is_silent.is_set():
                self.send_picture(camera.num_sent)
                camera.num_sent += 1
            if camera.num_sent >= camera.burst:
                camera.is_over.wait(1 / camera.fps)

    def has_ended(self):
        camera = self.server
        is_sent = camera.num_sent >= camera.num_pictures
        return camera.is_over.is_set() or camera.is_down.is_set() or is_sent

    def send_picture(self, number):
        scale = self.server.scale
        image = picture_of(number).repeat(scale, axis=0).repeat(scale, axis=1)
        good = cv2.imencode(".jpg", image)[1].tobytes()
        jpeg = self.server.bad.get(number, good)
        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        self.wfile.write(head.encode() + jpeg + b"\r\n")
