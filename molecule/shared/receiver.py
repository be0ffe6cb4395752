"""A web server for tests that is told something, as by alarm_url; it may refuse."""

from __future__ import annotations

import http.server
import threading
from typing import Any


class Receiver:
    """Keeps what it is told: method, path and body of each request."""

    def __init__(self, address: str, path: str) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.status = 200
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                receiver.requests.append((self.command, self.path, body))
                self.send_response(receiver.status)
                self.end_headers()

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_port}{path}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
