"""The client of the platform's HTTP API: `GET /api/v1/inbound-relay-domain-check?domain=DOMAIN`.

And for the list of all its domains: `POST /api/v1/sender.domains`.

`requests` blocks, and has no timeout for a whole response: its timeouts begin anew with every byte.
So it runs in a few threads, and at the deadline of a call the client shuts its socket down.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.cookiejar
import re
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from mx_validator.model import LookupKind, Outcome, Verdict
from mx_validator.platform_answers import parse_check, parse_list

CHECK_PATH = "api/v1/inbound-relay-domain-check"
LIST_PATH = "api/v1/sender.domains"
# Concurrent calls. The cache answers nearly all requests, and the load on the platform is to be
# small. Each kind has its own threads: lookups of unknown domains, however many, delay no refresh.
THREADS = {LookupKind.UNKNOWN: 8, LookupKind.LISTED: 8, LookupKind.REFRESH: 4}
CONNECTIONS = sum(THREADS.values())
# Between the starts of two calls: each takes a millisecond or two of the interpreter's time, and
# many at once would delay the answers for known-good domains. A hundred a second are more than
# there are first mails for the platform's domains; the rate limit holds other domains back earlier.
START_INTERVAL_SECONDS = 0.01
# For a whole lookup, including the wait for a thread. Longer than Postfix waits: a verdict that is
# too late for one request is cached for the next.
LOOKUP_SECONDS = 12.0
CONNECT_SECONDS = 3.0  # for each address of the platform's host
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_CHECK_BYTES = 65536  # a verdict has 100
LIST_SECONDS = 30.0  # no request waits for the list
MAX_LIST_BYTES = 4 * 1024 * 1024
# TCP keepalive, for firewalls that drop silent connections, and to detect dead ones: a lookup on a
# dead connection would time out.
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),  # seconds until the first probe
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),  # seconds between two
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),  # probes without an answer before it is closed
]


class _CallInFlight:
    """A call in flight, and its socket, so that another thread can abort it."""

    def __init__(self) -> None:
        self.aborted = False
        self.on_new_connection = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def attach(self, connection: socket.socket) -> None:
        """Attach the connection of the call. Raises TimeoutError if the call was aborted."""
        with self._lock:
            self._close()
            if self.aborted:
                raise TimeoutError
            # A duplicate: TLS detaches the original from its socket object, and the number of a
            # closed descriptor is soon used for another connection.
            self._socket = socket.fromfd(connection.fileno(), connection.family, connection.type)

    def detach(self) -> None:
        """Release the connection for the next call."""
        with self._lock:
            self._close()

    def abort(self) -> None:
        """Let the pending operation on the socket fail now; without one, do nothing."""
        with self._lock:
            self.aborted = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the platform may have closed it already
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _ThreadLocal(threading.local):
    """The call of the running thread: urllib3 offers no way to pass it on."""

    call: _CallInFlight


_current = _ThreadLocal()


class _TrackedConnection(HTTPConnection):
    """Attaches each connection, new or used again, to the current call."""

    def _new_conn(self) -> Any:  # noqa: ANN401 - urllib3's versions differ in the type
        _current.call.on_new_connection = True
        connection = super()._new_conn()
        try:
            _current.call.attach(connection)
        except OSError:
            connection.close()
            raise
        return connection

    def putrequest(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on unread
        if self.sock is not None:
            _current.call.attach(self.sock)
        super().putrequest(*args, **kwargs)


class _TrackedTLSConnection(_TrackedConnection, HTTPSConnection):
    """The same for https."""


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _TrackedConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TrackedTLSConnection


class _Adapter(HTTPAdapter):
    """An adapter whose connections are tracked and have TCP keepalive."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on unread
        options = [*HTTPConnection.default_socket_options, *KEEPALIVE]
        super().init_poolmanager(*args, socket_options=options, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _Session(requests.Session):
    """A session without redirects, whose body requests reads even with allow_redirects off."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - overridden
        return None


_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Call(Generic[_Result]):
    """One call of the API, and how its response is parsed."""

    method: str
    path: str
    arguments: dict[str, Any]  # further arguments of requests.request()
    parsed_statuses: frozenset[int]  # the body of a response with any other status is not read
    max_bytes: int
    parse: Callable[[int, bytes], _Result]  # takes status and body
    seconds: float


@dataclass(frozen=True)
class Endpoint:
    """The platform that is asked, and how."""

    oempro_url: str  # ends with a slash
    oempro_admin_api_key: str
    ca_file: Path


class PlatformClient:
    """The client. It belongs to one event loop; call `close()` at the end."""

    def __init__(self, endpoint: Endpoint, lookup_seconds: float = LOOKUP_SECONDS) -> None:
        self._lookup_seconds = lookup_seconds
        self._threads = {
            kind: ThreadPoolExecutor(number, thread_name_prefix="platform")
            for kind, number in THREADS.items()
        }
        self._in_flight: set[_CallInFlight] = set()
        self._next_start = 0.0
        self._endpoint = endpoint
        self._session = _session(endpoint)

    def set_endpoint(self, endpoint: Endpoint) -> None:
        """Use another endpoint from the next call on."""
        self._session.close()
        self._endpoint = endpoint
        self._session = _session(endpoint)

    def close(self) -> None:
        """Abort all calls. Their threads end too, except one that is inside a DNS lookup."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        for in_flight in self._in_flight:
            in_flight.abort()
        self._session.close()

    async def check_domain(self, domain: str, kind: LookupKind) -> Outcome:
        """Return the outcome of a lookup of a normalised domain; DEFER at the deadline."""
        call = _Call(
            "GET",
            CHECK_PATH,
            {"params": {"domain": domain}},
            frozenset({200, 500}),
            MAX_CHECK_BYTES,
            parse_check,
            self._lookup_seconds,
        )
        return await self._run(call, kind)

    async def list_domains(self, seconds: float = LIST_SECONDS) -> frozenset[str] | Outcome:
        """Return the domains on the platform's list, or the reason why there is none."""
        call = _Call(
            "POST",
            LIST_PATH,
            {"json": {"DomainsResponseFormat": "json"}},
            frozenset({200}),
            MAX_LIST_BYTES,
            parse_list,
            seconds,
        )
        return await self._run(call, LookupKind.LISTED)

    async def _run(self, call: _Call[_Result], kind: LookupKind) -> _Result | Outcome:
        """Run a call in a thread; return its result, or a DEFER at its deadline."""
        in_flight = _CallInFlight()
        self._in_flight.add(in_flight)
        try:
            loop = asyncio.get_running_loop()
            now = loop.time()
            start = max(self._next_start, now)
            self._next_start = start + START_INTERVAL_SECONDS
            await asyncio.sleep(start - now)
            url = self._endpoint.oempro_url
            result = loop.run_in_executor(
                self._threads[kind], self._run_in_thread, in_flight, self._session, url, call
            )
            deadline = now + call.seconds
            done, _ = await asyncio.wait({result}, timeout=deadline - loop.time())
            if done:
                return result.result()
            result.cancel()
            reason = f"no answer within {call.seconds:g} s"
            return Outcome(Verdict.DEFER, reason, "timeout")
        finally:
            in_flight.abort()
            self._in_flight.discard(in_flight)

    def _run_in_thread(
        self,
        in_flight: _CallInFlight,
        session: requests.Session,
        oempro_url: str,
        call: _Call[_Result],
    ) -> _Result | Outcome:
        _current.call = in_flight
        try:
            return self._send_with_retries(in_flight, session, oempro_url, call)
        except requests.exceptions.SSLError as error:
            reason = f"TLS to the platform failed: {_root_cause(error)}"
            return Outcome(Verdict.DEFER, reason, "tls")
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
        ) as error:
            reason = f"no answer from the platform: {_root_cause(error)}"
            return Outcome(Verdict.DEFER, reason, "unreachable")
        finally:
            in_flight.detach()

    def _send_with_retries(
        self,
        in_flight: _CallInFlight,
        session: requests.Session,
        oempro_url: str,
        call: _Call[_Result],
    ) -> _Result | Outcome:
        # The platform may have closed idle connections that are still in the pool. Each try removes
        # one of them from it, so that the last try is sure to use a new connection.
        for _ in range(CONNECTIONS):
            in_flight.on_new_connection = False
            try:
                return self._send(session, oempro_url, call)
            except requests.ConnectionError as error:
                if (
                    in_flight.aborted
                    or in_flight.on_new_connection
                    or not _closed_before_response(error)
                ):
                    raise
        return self._send(session, oempro_url, call)

    def _send(
        self, session: requests.Session, oempro_url: str, call: _Call[_Result]
    ) -> _Result | Outcome:
        with session.request(
            call.method,
            oempro_url + call.path,
            # Longer than the deadline of the whole call, which normally comes first.
            timeout=(CONNECT_SECONDS, call.seconds + 1),
            allow_redirects=False,
            stream=True,
            **call.arguments,
        ) as response:
            status = response.status_code
            if status in REDIRECTS:
                redirect = _redirect(response.headers.get("Location", ""))
                reason = f"platform answered {status}, a redirect to {redirect}"
                return Outcome(Verdict.DEFER, reason, "http_error")
            if status not in call.parsed_statuses:
                return call.parse(status, b"")
            body = response.raw.read(call.max_bytes + 1, decode_content=False)
            if len(body) > call.max_bytes:
                reason = f"platform answered {status} with over {call.max_bytes} bytes"
                return Outcome(Verdict.DEFER, reason, "no_verdict")
            # urllib3 1.26 does not report a body that is shorter than announced.
            if response.headers.get("Content-Length", str(len(body))) != str(len(body)):
                reason = f"platform answered {status}, but was cut short"
                return Outcome(Verdict.DEFER, reason, "no_verdict")
            return call.parse(status, body)


def _redirect(location: str) -> str:
    """Return where a redirect leads, without any path, and what to do about it.

    The key goes nowhere else than to the URL that was configured (RFC 9110 15.4 leaves it to the
    client whether it follows a redirect).
    """
    found = re.match(r"https?://[A-Za-z0-9.:\[\]-]{1,255}(?=/|\Z)", location)
    if found:
        return f"{found[0]}/: set oempro_url to it"
    return "another path: set oempro_url to the base URL of Oempro"


def _session(endpoint: Endpoint) -> requests.Session:
    session = _Session()
    # Nothing from the environment: a .netrc would replace the key, and a proxy would read it.
    session.trust_env = False
    session.verify = str(endpoint.ca_file)
    session.headers.update(
        {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Authorization": f"Bearer {endpoint.oempro_admin_api_key}",
            "User-Agent": "mx-validator",
        }
    )
    # With a session cookie, PHP would answer concurrent lookups one after the other.
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    adapter = _Adapter(pool_maxsize=CONNECTIONS)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _closed_before_response(error: requests.ConnectionError) -> bool:
    """Whether the connection, or its pool after a reload, was closed before a response began."""
    closed = (urllib3.exceptions.ProtocolError, urllib3.exceptions.ClosedPoolError)
    return bool(error.args) and isinstance(error.args[0], closed)


def _root_cause(error: BaseException) -> str:
    """Return the innermost error's text; requests wraps it three times, with object addresses."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
