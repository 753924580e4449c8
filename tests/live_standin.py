"""A server that shows the live page any snapshot: for states that real runs seldom reach.

It speaks what `dagsched.viz.live` speaks to the page, with the same policy for contents, and knows
no environment: a test hands it snapshots.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.checkout import ROOT

PAGE = ROOT / "viz" / "live" / "page"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


class StandIn:
    """A server on the loopback that tells each reader the last snapshot it was given."""

    def __init__(self, snapshot: dict[str, Any], port: int = 0) -> None:
        self.snapshot = snapshot
        self.answers: dict[str, Any] = {"/api/logs": {"lines": []}, "/api/keys": {"keys": []}}
        self.refuses = False
        self._changed = threading.Condition()
        self._number = self._drops = 0
        self._is_open = True
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def tell(self, snapshot: dict[str, Any]) -> None:
        """Send this to everybody who listens, and to whoever comes."""
        with self._changed:
            self.snapshot = snapshot
            self._number += 1
            self._changed.notify_all()

    def drop(self) -> None:
        """Break the connections of all that listen."""
        with self._changed:
            self._drops += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()  # joins the threads of its readers
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        if self.refuses:
            self._send(request, 403, "text/plain", b"open the address that was printed")
        elif path == "/events":
            self._stream(request)
        elif path == "/api/snapshot":
            self._send(request, 200, "application/json", json.dumps(self.snapshot).encode())
        elif path in self.answers:
            self._send(request, 200, "application/json", json.dumps(self.answers[path]).encode())
        else:
            file = PAGE / ("index.html" if path == "/" else Path(path).name)
            if file.is_file():
                self._send(request, 200, TYPES[file.suffix], file.read_bytes())
            else:
                self._send(request, 404, "application/json", b'{"error": "there is no such thing"}')

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, kind: str, content: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Content-Security-Policy", "default-src 'self'")
        request.end_headers()
        request.wfile.write(content)

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Cache-Control", "no-store")
        request.end_headers()
        sent, drops = -1, self._drops
        while True:
            with self._changed:
                while self._is_open and sent == self._number and drops == self._drops:
                    self._changed.wait()
                if not self._is_open or drops != self._drops:
                    return
                sent, text = self._number, json.dumps(self.snapshot)
            try:
                request.wfile.write(f"event: snapshot\ndata: {text}\n\n".encode())
                request.wfile.flush()
            except OSError:
                return  # the reader has gone
