#!/usr/bin/env python3
"""A stand-in for the platform's API: says about a domain what a test or a demo wants to hear.

    platform_stub.py --address 127.0.0.1 --port 8080 --control-port 8081 --api-key KEY
    curl -X PUT -d '{"mode": "allow"}' http://127.0.0.1:8081/answers/example.com
    curl -H 'Authorization: Bearer KEY' \
        'http://127.0.0.1:8080/api/v1/inbound-relay-domain-check?domain=example.com'
    curl -H 'Authorization: Bearer KEY' -X POST http://127.0.0.1:8080/api/v1/sender.domains

Control port, everything in JSON:

    GET, PUT, DELETE /answers/DOMAIN   what this domain gets: {"mode": "allow", "delay_ms": 50}
    GET, PUT /default                  what all other domains get, "deny" at first
    GET, PUT /list                     what who asks for the list gets: "allow" is the domains that
                                       have "allow" by name
    GET, PUT /api-key                  the Bearer key that is right
    GET, PUT /listening                true or false: false closes the API port and its connections
    GET, DELETE /requests              what the API port was asked about domains, oldest first
    GET /requests/count                how often it was asked
    GET /list/requests                 the requests for the list
    POST /reset                        back to the beginning; whatever hangs is let go
"""

# ruff: noqa: A002, N815 - signatures and names are those of http.server

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

CHECK_PATH = "/api/v1/inbound-relay-domain-check"
LIST_PATH = "/api/v1/sender.domains"
REDIRECT_PATH = "/redirected"
REQUESTS_KEPT = 100_000  # a flood of questions must not fill the memory; the count goes on
LISTEN_BACKLOG = 1024
POLL_SECONDS = 0.05  # how soon a waiting thread notices that it may go

JSON = "application/json"
HTML = "text/html"
FIXED: dict[str, tuple[int, str, str]] = {
    "deny": (500, JSON, "{}"),
    "unauthorized": (401, JSON, '{"Success":false}'),
    "forbidden": (403, JSON, '{"Success":false}'),
    "not_found": (404, HTML, "<h1>Not Found</h1>"),
    "too_many": (429, JSON, '{"Success":false}'),
    "error_html": (500, HTML, "<h1>Internal Server Error</h1>"),
    "error_empty": (500, HTML, ""),
    "error_json": (500, JSON, '{"Errors":["database is away"]}'),
    "bad_gateway": (502, HTML, "<h1>Bad Gateway</h1>"),
    "unavailable": (503, HTML, "<h1>Service Unavailable</h1>"),
    "gateway_timeout": (504, HTML, "<h1>Gateway Timeout</h1>"),
    "redirect": (302, HTML, ""),
    "ok_html": (200, HTML, "<h1>Welcome</h1>"),
    "ok_false": (200, JSON, '{"Success":false}'),
    "ok_list": (200, JSON, "[]"),
}
SPECIAL = ("allow", "hang", "drip_header", "drip_body", "huge", "reset")
MODES = (*SPECIAL, *FIXED)


@dataclass(frozen=True)
class Answer:
    """What a domain gets, after `delay_ms`; `interval_ms` is the pause between dripped bytes."""

    mode: str
    delay_ms: int = 0
    interval_ms: int = 1000

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}, and must be one of {', '.join(MODES)}")
        for name in ("delay_ms", "interval_ms"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}, and must be a whole number of 0 or more")


@dataclass(frozen=True)
class Request:
    """One request as it came in. The key itself is not kept."""

    time: float  # seconds since 1970
    path: str
    query: str  # as it was sent, still encoded
    domain: str | None  # decoded
    authorized: bool
    headers: list[str]  # names only


class State:
    """The answers wanted and the questions asked, shared by both ports."""

    def __init__(self, api_key: str) -> None:
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._first_api_key = api_key
        self._clear()

    def _clear(self) -> None:
        self.api_key = self._first_api_key
        self.answers: dict[str, Answer] = {}
        self.default = Answer("deny")
        self.list_answer = Answer("allow")
        self.list_requests: list[Request] = []
        self.forget_requests()

    def forget_requests(self) -> None:
        self.requests: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self.count = 0

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            self.count += 1

    def answer(self, domain: str | None) -> tuple[Answer, threading.Event]:
        """The answer for a domain, and the event that ends its waiting."""
        return self.answers.get(domain or "", self.default), self._released

    def listed(self, request: Request) -> tuple[Answer, threading.Event, list[str]]:
        """The answer for the list, the event that ends its waiting, and the domains on it."""
        with self._lock:
            self.list_requests.append(request)
        domains = [domain for domain, answer in [*self.answers.items()] if answer.mode == "allow"]
        return self.list_answer, self._released, domains

    def reset(self) -> None:
        with self._lock:
            self._clear()
            released, self._released = self._released, threading.Event()
        released.set()


class Server(ThreadingHTTPServer):
    """A thread for each connection; can drop them all; shrugs off clients that vanish."""

    daemon_threads = True
    request_queue_size = LISTEN_BACKLOG

    def __init__(
        self,
        address: tuple[str, int],
        handler: Callable[..., BaseHTTPRequestHandler],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._tls = tls
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, handler)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    # The plain method: SSLSocket's own drops the TLS state its thread still uses.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The TLS handshake belongs here, in the connection's own thread: it holds up nobody else.
        connection = self._tls.wrap_socket(request, server_side=True) if self._tls else request
        with self._connections_lock:
            self._connections.add(connection)
        try:
            with connection:
                super().finish_request(connection, client_address)
        finally:
            with self._connections_lock:
                self._connections.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """What both ports have in common."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the control port tells what was asked."""

    def reply(self, status: int, content_type: str, body: str) -> None:
        head, content = response(status, content_type, body)
        self.wfile.write(head + content)


def response(status: int, content_type: str, body: str) -> tuple[bytes, bytes]:
    """Head and body of an HTTP response, ready to be sent."""
    content = body.encode()
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
    ]
    if 300 <= status < 400:
        lines.append(f"Location: {REDIRECT_PATH}")
    return "\r\n".join([*lines, "", ""]).encode(), content


class ApiHandler(Handler):
    """The platform's port."""

    def __init__(self, state: State, *args: Any) -> None:
        self._state = state
        super().__init__(*args)

    def do_GET(self) -> None:
        request = self._request()
        answer, released = self._state.answer(request.domain)
        self._state.record(request)
        success = {"Success": True, "RelayDomain": request.domain}
        self._answer(request, CHECK_PATH, answer, success, released)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = self._request()
        answer, released, domains = self._state.listed(request)
        success = {"Success": True, "Domains": domains}
        self._answer(request, LIST_PATH, answer, success, released)

    def _request(self) -> Request:
        url = urlsplit(self.path)
        domain = parse_qs(url.query, keep_blank_values=True).get("domain", [None])[0]
        authorized = self.headers.get("Authorization") == f"Bearer {self._state.api_key}"
        return Request(time.time(), url.path, url.query, domain, authorized, list(self.headers))

    def _answer(
        self,
        request: Request,
        path: str,
        answer: Answer,
        success: Mapping[str, object],
        released: threading.Event,
    ) -> None:
        if request.path != path:
            self.reply(*FIXED["not_found"])
        elif not request.authorized:
            self.reply(*FIXED["forbidden"])
        elif self._wait(answer.delay_ms / 1000, released):
            self._give(answer, (200, JSON, json.dumps(success)), released)

    def _give(self, answer: Answer, allow: tuple[int, str, str], released: threading.Event) -> None:
        if answer.mode in FIXED:
            self.reply(*FIXED[answer.mode])
        elif answer.mode == "allow":
            self.reply(*allow)
        elif answer.mode == "hang":
            self._wait(None, released)
        elif answer.mode == "drip_header":
            head, body = response(*allow)
            self._drip(head + body, answer.interval_ms / 1000, released)
        elif answer.mode == "drip_body":
            head, body = response(*allow)
            self.wfile.write(head)
            self._drip(body, answer.interval_ms / 1000, released)
        elif answer.mode == "huge":
            self._flood(released)
        elif answer.mode == "reset":
            self._reset()

    def _wait(self, seconds: float | None, released: threading.Event) -> bool:
        """Wait (None: without end); False, and the connection is to be closed, if cut short."""
        ends = None if seconds is None else time.monotonic() + seconds
        gone = select.poll()
        gone.register(self.connection, select.POLLIN)
        while ends is None or time.monotonic() < ends:
            left = POLL_SECONDS if ends is None else min(POLL_SECONDS, ends - time.monotonic())
            # A client has nothing to say while it waits: what can be read is its end.
            if gone.poll(max(left, 0) * 1000) or released.is_set():
                self.close_connection = True
                return False
        return True

    def _drip(self, data: bytes, interval: float, released: threading.Event) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            if not self._wait(interval, released):
                return

    def _flood(self, released: threading.Event) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        self.wfile.write(b'{"Success":true,"Fill":"')
        while not released.is_set():
            self.wfile.write(b"x" * 65536)

    def _reset(self) -> None:
        self.close_connection = True
        # Lingering for zero seconds turns the close into a RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


class ControlHandler(Handler):
    """The port by which a test tells the stub what to say."""

    def __init__(self, stub: PlatformStub, *args: Any) -> None:
        self._stub = stub
        super().__init__(*args)

    def _route(self) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            result = self._do(self.command, self.path, json.loads(body) if body else None)
        except LookupError:
            self.reply(404, JSON, json.dumps({"error": f"no {self.command} {self.path}"}))
        except (TypeError, ValueError) as error:
            self.reply(400, JSON, json.dumps({"error": str(error)}))
        else:
            self.reply(200, JSON, json.dumps(result))

    do_GET = do_PUT = do_DELETE = do_POST = _route

    def _do(self, method: str, path: str, value: Any) -> object:
        if path.startswith("/answers/"):
            return self._do_answer(method, unquote(path[len("/answers/") :]), value)
        state = self._stub.state
        actions: dict[tuple[str, str], Callable[[], object]] = {
            ("GET", "/default"): lambda: asdict(state.default),
            ("PUT", "/default"): lambda: setattr(state, "default", Answer(**value)),
            ("GET", "/list"): lambda: asdict(state.list_answer),
            ("PUT", "/list"): lambda: setattr(state, "list_answer", Answer(**value)),
            ("GET", "/list/requests"): lambda: [asdict(each) for each in state.list_requests],
            ("GET", "/api-key"): lambda: state.api_key,
            ("PUT", "/api-key"): lambda: setattr(state, "api_key", value),
            ("GET", "/listening"): lambda: self._stub.listening,
            ("PUT", "/listening"): partial(self._stub.listen, value),
            ("GET", "/requests"): lambda: [asdict(request) for request in list(state.requests)],
            ("DELETE", "/requests"): state.forget_requests,
            ("GET", "/requests/count"): lambda: state.count,
            ("POST", "/reset"): self._stub.reset,
        }
        return actions[method, path]()

    def _do_answer(self, method: str, domain: str, value: Any) -> object:
        answers = self._stub.state.answers
        if method == "GET":
            return asdict(answers[domain])
        if method == "PUT":
            answers[domain] = Answer(**value)
        elif method == "DELETE":
            answers.pop(domain, None)
        else:
            raise LookupError
        return None


class PlatformStub:
    """Both ports of the stub; port 0 takes any free one."""

    def __init__(
        self,
        api_key: str,
        address: str = "127.0.0.1",
        port: int = 0,
        control_port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.state = State(api_key)
        self._tls = tls
        self._handler = lambda *args: ApiHandler(self.state, *args)
        self._listen_lock = threading.Lock()
        self._api: Server | None = Server((address, port), self._handler, tls)
        self._control = Server((address, control_port), lambda *args: ControlHandler(self, *args))
        self._address = (address, self._api.server_address[1])
        host = f"[{address}]" if ":" in address else address
        self.url = f"{'https' if tls else 'http'}://{host}:{self._address[1]}/"
        self.control_url = f"http://{host}:{self._control.server_address[1]}/"

    @property
    def listening(self) -> bool:
        return self._api is not None

    def listen(self, wanted: bool) -> None:
        """Close the API port with all its connections, or open it again."""
        if not isinstance(wanted, bool):
            raise TypeError("listening is true or false")
        with self._listen_lock:
            if not wanted and self._api is not None:
                self._api.stop()
                self._api = None
            elif wanted and self._api is None:
                self._api = Server(self._address, self._handler, self._tls)
                self._api.start()

    def reset(self) -> None:
        self.state.reset()
        self.listen(True)

    def start(self) -> None:
        if self._api is not None:
            self._api.start()
        self._control.start()

    def stop(self) -> None:
        self.listen(False)
        self._control.stop()


class StubClient:
    """Drives a stub's control port. Raises urllib.error.HTTPError when the stub refuses."""

    def __init__(self, control_url: str) -> None:
        self._url = control_url.rstrip("/")
        # No proxy of the environment may stand between a test and its stub.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _call(self, method: str, path: str, value: object = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        with self._opener.open(request, timeout=10) as reply:
            return json.load(reply)

    def answer(self, domain: str, mode: str, **options: int) -> None:
        """Let `domain` get `mode`; options are those of Answer."""
        self._call("PUT", f"/answers/{quote(domain, safe='')}", {"mode": mode, **options})

    def forget_answer(self, domain: str) -> None:
        self._call("DELETE", f"/answers/{quote(domain, safe='')}")

    def default(self, mode: str, **options: int) -> None:
        self._call("PUT", "/default", {"mode": mode, **options})

    def answer_list(self, mode: str, **options: int) -> None:
        """Let who asks for the list of domains get `mode`."""
        self._call("PUT", "/list", {"mode": mode, **options})

    def list_requests(self) -> Any:
        return self._call("GET", "/list/requests")

    @property
    def api_key(self) -> str:
        """The Bearer key that is right."""
        return str(self._call("GET", "/api-key"))

    @api_key.setter
    def api_key(self, key: str) -> None:
        self._call("PUT", "/api-key", key)

    def listen(self, wanted: bool) -> None:
        self._call("PUT", "/listening", wanted)

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/requests")
        return found

    def count(self) -> int:
        return int(self._call("GET", "/requests/count"))

    def forget_requests(self) -> None:
        self._call("DELETE", "/requests")

    def reset(self) -> None:
        self._call("POST", "/reset")


def main() -> int:
    parser = argparse.ArgumentParser(description="Stand-in for the platform's API.")
    parser.add_argument("--address", default="127.0.0.1", help="of both ports (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="the API's port (%(default)s)")
    parser.add_argument("--control-port", type=int, default=8081, help="control port (%(default)s)")
    parser.add_argument("--api-key", required=True, help="the Bearer key that is right")
    parser.add_argument("--certificate", metavar="FILE", help="speak HTTPS on the API port")
    parser.add_argument("--private-key", metavar="FILE", help="the key that belongs to it")
    options = parser.parse_args()
    if bool(options.certificate) != bool(options.private_key):
        parser.error("--certificate and --private-key go together")
    tls = None
    if options.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate, options.private_key)

    # Blocked before the first thread starts, so that only sigwait() below gets them.
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    ports = (options.address, options.port, options.control_port)
    stub = PlatformStub(options.api_key, *ports, tls)
    stub.start()
    print(f"ready: API {stub.url} control {stub.control_url}", flush=True)
    signal.sigwait(stop)
    stub.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
