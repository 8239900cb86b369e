"""A web server on this machine, at work within a `with` block."""

import contextlib
import http.server
import threading


class LocalServer(http.server.ThreadingHTTPServer):
    """Serves on a free port; `is_over` is set at the end, for handlers that wait."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.is_over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return super().__enter__()

    def __exit__(self, *exc_info):
        self.is_over.set()
        self.shutdown()
        super().__exit__(*exc_info)


class LocalHandler(http.server.BaseHTTPRequestHandler):
    """Calls `answer` for GET, prints nothing, and ends quietly when the client disconnects."""

    def log_message(self, *arguments):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self):
        self.answer()
