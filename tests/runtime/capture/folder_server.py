"""A web server for the files of a folder, with Range, that may stop in the middle."""

import urllib.parse

from tests.runtime.capture.local_server import LocalHandler, LocalServer


class FolderServer(LocalServer):
    """Serves a folder's files.

    Args:
        folder: of the files.
        protocol: with HTTP/1.1 a connection is closed where the client asks for it, and the answer
            does not say so.
        limit: of every file only this many bytes are sent; None sends all.
        holds: whether the connection stays open after `limit` bytes.
    """

    def __init__(self, folder, *, protocol="HTTP/1.0", limit=None, holds=False):
        handler = type("Handler", (FileHandler,), {"protocol_version": protocol})
        super().__init__(handler)
        self.folder = folder
        self.limit = limit
        self.holds = holds


class FileHandler(LocalHandler):
    """Answers with the file, or the part of it that Range asks for."""

    def answer(self):
        name = urllib.parse.unquote(self.path[1:].partition("?")[0])
        whole = (self.server.folder / name).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), int(last) + 1 if last else len(whole)
        self.send_response(206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(whole)}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(whole[begin : min(end, self.server.limit or end)])
        self.wfile.flush()
        if self.server.holds:
            self.server.is_over.wait()
