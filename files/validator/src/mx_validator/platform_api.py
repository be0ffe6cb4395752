"""Asks the platform who owns a domain: `GET /api/v1/inbound-relay-domain-check?domain=DOMAIN`.

And for the list of all its domains: `POST /api/v1/sender.domains`.

`requests` blocks and knows no deadline for a whole answer: its timeouts begin anew with every byte.
So it runs in a few threads, and when a question's time is up, its socket is shut down from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.cookiejar
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

from mx_validator.decider import Outcome, Verdict
from mx_validator.platform_answers import judge, read_list
from mx_validator.throttle import Kind

CHECK_PATH = "api/v1/inbound-relay-domain-check"
LIST_PATH = "api/v1/sender.domains"
# Questions at a time. Memory answers nearly all, and the platform is to be spared. Each kind has
# threads of its own: unknown domains in any number cannot keep what is known good from a refresh.
THREADS = {Kind.UNKNOWN: 8, Kind.LISTED: 8, Kind.REFRESH: 4}
CONNECTIONS = sum(THREADS.values())
# Between the starts of two questions: each costs the interpreter a millisecond or two, and many at
# once would keep it from answering about known-good domains. A hundred a second are more than there
# are first mails for domains of the platform; made-up ones are held back long before.
START_EVERY_SECONDS = 0.01
# From the question to its end, waiting for a thread included. Longer than Postfix is kept waiting:
# a verdict that comes too late for one sender is in memory for the next.
QUESTION_SECONDS = 12.0
CONNECT_SECONDS = 3.0  # for each address of the platform's host
MAX_BODY_BYTES = 65536  # a verdict has 100; what is larger is no verdict
LIST_SECONDS = 30.0  # nobody waits for the list
MAX_LIST_BYTES = 4 * 1024 * 1024
# An idle connection shows that it is alive, to firewalls that forget silent ones, and to us: on a
# dead one the next question would only run out of time.
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),  # seconds until the first probe
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),  # seconds between two
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),  # probes without an answer are the end
]


class _Call:
    """One question under way: the handle by which its socket is reached from another thread."""

    def __init__(self) -> None:
        self.ended = False
        self.on_new_connection = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def watch(self, connection: socket.socket) -> None:
        """Tie the question to a connection. Raises OSError if its time is up."""
        with self._lock:
            self._release()
            if self.ended:
                raise TimeoutError
            # A descriptor of our own: TLS takes the original out of the socket object it was in,
            # and the number of a closed one soon belongs to another connection.
            self._socket = socket.fromfd(connection.fileno(), connection.family, connection.type)

    def let_go(self) -> None:
        """Leave the connection to the next question."""
        with self._lock:
            self._release()

    def end(self) -> None:
        """Let whatever the question waits for fail now; harmless if it waits for nothing."""
        with self._lock:
            self.ended = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the platform may have closed it already
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._release()

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Current(threading.local):
    """The question that the running thread works on: urllib3 offers no way to hand it down."""

    call: _Call


_current = _Current()


class _Watched(HTTPConnection):
    """Ties each new connection, and each one that is used again, to the current question."""

    def _new_conn(self) -> Any:  # noqa: ANN401 - urllib3's versions differ in the type
        _current.call.on_new_connection = True
        connection = super()._new_conn()
        try:
            _current.call.watch(connection)
        except OSError:
            connection.close()
            raise
        return connection

    def putrequest(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on unread
        if self.sock is not None:
            _current.call.watch(self.sock)
        super().putrequest(*args, **kwargs)


class _WatchedTLS(_Watched, HTTPSConnection):
    """The same for https."""


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


class _Adapter(HTTPAdapter):
    """An adapter of such connections."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on unread
        options = [*HTTPConnection.default_socket_options, *KEEPALIVE]
        super().init_poolmanager(*args, socket_options=options, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _Session(requests.Session):
    """A session without redirects: requests reads their whole body even when told not to follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - overridden
        return None


_Meaning = TypeVar("_Meaning")


@dataclass(frozen=True)
class _Question(Generic[_Meaning]):
    """What to ask, and what to make of the answer."""

    method: str
    path: str
    arguments: dict[str, Any]  # more of those of requests.request()
    statuses: frozenset[int]  # that have a meaning: of others the body is not even read
    max_bytes: int
    meaning: Callable[[int, bytes], _Meaning]  # of a status and a body
    seconds: float


@dataclass(frozen=True)
class Target:
    """Whom to ask, and with what."""

    url: str  # ends with a slash
    api_key: str
    ca_file: Path


class PlatformClient:
    """Puts questions to the platform. Belongs to one event loop; `close()` it at the end."""

    def __init__(self, target: Target, question_seconds: float = QUESTION_SECONDS) -> None:
        self._question_seconds = question_seconds
        self._threads = {
            kind: ThreadPoolExecutor(number, thread_name_prefix="platform")
            for kind, number in THREADS.items()
        }
        self._calls: set[_Call] = set()
        self._next_start = 0.0
        self._target = target
        self._session = _session(target)

    def set_target(self, target: Target) -> None:
        """Ask `target` from the next question on."""
        self._session.close()
        self._target = target
        self._session = _session(target)

    def close(self) -> None:
        """End the questions under way. Their threads end too, except one inside a DNS lookup."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        for call in self._calls:
            call.end()
        self._session.close()

    async def ask(self, domain: str, kind: Kind) -> Outcome:
        """Return the platform's verdict on a normalised domain; DEFER if it gives none in time."""
        question = _Question(
            "GET",
            CHECK_PATH,
            {"params": {"domain": domain}},
            frozenset({200, 500}),
            MAX_BODY_BYTES,
            judge,
            self._question_seconds,
        )
        return await self._put(question, kind)

    async def list_domains(self, seconds: float = LIST_SECONDS) -> frozenset[str] | Outcome:
        """Return the domains that the platform lists, or why there is no list."""
        question = _Question(
            "POST",
            LIST_PATH,
            {"json": {"DomainsResponseFormat": "json"}},
            frozenset({200}),
            MAX_LIST_BYTES,
            read_list,
            seconds,
        )
        return await self._put(question, Kind.LISTED)

    async def _put(self, question: _Question[_Meaning], kind: Kind) -> _Meaning | Outcome:
        """Return what the answer means, or why there is none in time."""
        call = _Call()
        self._calls.add(call)
        try:
            loop = asyncio.get_running_loop()
            now = loop.time()
            start = max(self._next_start, now)
            self._next_start = start + START_EVERY_SECONDS
            await asyncio.sleep(start - now)
            answer = loop.run_in_executor(
                self._threads[kind], self._fetch, call, self._session, self._target.url, question
            )
            ends = now + question.seconds
            done, _ = await asyncio.wait({answer}, timeout=ends - loop.time())
            if done:
                return answer.result()
            answer.cancel()
            reason = f"no answer within {question.seconds:g} s"
            return Outcome(Verdict.DEFER, reason, "timeout")
        finally:
            call.end()
            self._calls.discard(call)

    def _fetch(
        self, call: _Call, session: requests.Session, url: str, question: _Question[_Meaning]
    ) -> _Meaning | Outcome:
        """Runs in one of the threads."""
        _current.call = call
        try:
            return self._send(call, session, url, question)
        except requests.exceptions.SSLError as error:
            return Outcome(Verdict.DEFER, f"TLS to the platform failed: {_cause(error)}", "tls")
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
        ) as error:
            reason = f"no answer from the platform: {_cause(error)}"
            return Outcome(Verdict.DEFER, reason, "unreachable")
        finally:
            call.let_go()

    def _send(
        self, call: _Call, session: requests.Session, url: str, question: _Question[_Meaning]
    ) -> _Meaning | Outcome:
        # The platform may have closed idle connections that wait here for their next use. Each try
        # takes one of them away, so that the last one is sure to be on a new connection.
        for _ in range(CONNECTIONS):
            call.on_new_connection = False
            try:
                return self._send_once(session, url, question)
            except requests.ConnectionError as error:
                if call.ended or call.on_new_connection or not _broke_unanswered(error):
                    raise
        return self._send_once(session, url, question)

    def _send_once(
        self, session: requests.Session, url: str, question: _Question[_Meaning]
    ) -> _Meaning | Outcome:
        with session.request(
            question.method,
            url + question.path,
            # Only for when nobody ends the question: that comes first, and covers all of it.
            timeout=(CONNECT_SECONDS, question.seconds + 1),
            allow_redirects=False,
            stream=True,
            **question.arguments,
        ) as response:
            status = response.status_code
            if status not in question.statuses:
                return question.meaning(status, b"")
            body = response.raw.read(question.max_bytes + 1, decode_content=False)
            if len(body) > question.max_bytes:
                reason = f"platform answered {status} with over {question.max_bytes} bytes"
                return Outcome(Verdict.DEFER, reason, "no_verdict")
            # urllib3 1.26 takes a body that was cut short for a whole one.
            if response.headers.get("Content-Length", str(len(body))) != str(len(body)):
                reason = f"platform answered {status}, but was cut short"
                return Outcome(Verdict.DEFER, reason, "no_verdict")
            return question.meaning(status, body)


def _session(target: Target) -> requests.Session:
    session = _Session()
    # Nothing from the environment: a .netrc would replace the key, a proxy would get to see it.
    session.trust_env = False
    session.verify = str(target.ca_file)
    session.headers.update(
        {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Authorization": f"Bearer {target.api_key}",
            "User-Agent": "mx-validator",
        }
    )
    # A session cookie would make PHP answer our parallel questions one after the other.
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    adapter = _Adapter(pool_maxsize=CONNECTIONS)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _broke_unanswered(error: requests.ConnectionError) -> bool:
    """Whether the connection, or its pool after a reload, was closed before any answer."""
    closed = (urllib3.exceptions.ProtocolError, urllib3.exceptions.ClosedPoolError)
    return bool(error.args) and isinstance(error.args[0], closed)


def _cause(error: BaseException) -> str:
    """The innermost error's own words: requests wraps it three times, object addresses included."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
