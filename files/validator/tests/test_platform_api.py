from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_stub import PlatformStub, StubClient
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ClosedPoolError

from conftest import API_KEY, Stub
from mx_validator import platform_api
from mx_validator.model import LookupKind, Outcome, OutcomeKind, Verdict
from mx_validator.platform_api import (
    MAX_CHECK_BYTES,
    START_INTERVAL_SECONDS,
    THREADS,
    Endpoint,
    PlatformClient,
)
from support import PATIENCE, eventually_async

AT_ONCE = THREADS[LookupKind.UNKNOWN]
ALLOW = Outcome(Verdict.ALLOW, "platform says yes", "allow")
DENY = Outcome(Verdict.DENY, "platform says no", "deny")
OTHER_PATH = "another path: set oempro_url to the base URL of Oempro"
SHORT = 0.5  # the deadline in seconds of lookups that are to exceed it


class UnknownDomainClient(PlatformClient):
    """A client whose lookups are of unknown domains by default."""

    async def check_domain(self, domain: str, kind: LookupKind = LookupKind.UNKNOWN) -> Outcome:
        return await super().check_domain(domain, kind)


Client = Callable[..., UnknownDomainClient]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    clients: list[UnknownDomainClient] = []

    def make(
        url: str, seconds: float = PATIENCE, key: str = API_KEY, ca_file: Path | str = "/none"
    ) -> UnknownDomainClient:
        target = Endpoint(url, key, Path(ca_file))
        clients.append(UnknownDomainClient(target, seconds))
        return clients[-1]

    yield make
    for made in clients:
        made.close()
    await eventually_async(lambda: not threads())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("platform")]


def deferred(reason: str, kind: OutcomeKind) -> Outcome:
    return Outcome(Verdict.DEFER, reason, kind)


MODES = {
    "allow": ALLOW,
    "deny": DENY,
    "unauthorized": deferred("API key refused (401)", "key_refused"),
    "forbidden": deferred("API key refused (403)", "key_refused"),
    "not_found": deferred("platform answered 404", "http_error"),
    "too_many": deferred("platform answered 429", "http_error"),
    "error_html": deferred("platform answered 500 with something else than {}", "no_verdict"),
    "error_empty": deferred("platform answered 500 with something else than {}", "no_verdict"),
    "error_json": deferred("platform answered 500 with something else than {}", "no_verdict"),
    "bad_gateway": deferred("platform answered 502", "http_error"),
    "unavailable": deferred("platform answered 503", "http_error"),
    "gateway_timeout": deferred("platform answered 504", "http_error"),
    "redirect": deferred(f"platform answered 302, a redirect to {OTHER_PATH}", "http_error"),
    "ok_html": deferred("platform answered 200 without Success: true", "no_verdict"),
    "ok_false": deferred("platform answered 200 without Success: true", "no_verdict"),
    "ok_list": deferred("platform answered 200 without Success: true", "no_verdict"),
    "huge": deferred(f"platform answered 200 with over {MAX_CHECK_BYTES} bytes", "no_verdict"),
    "reset": deferred("no answer from the platform: Connection reset by peer", "unreachable"),
}


@pytest.mark.parametrize("mode", MODES)
async def test_every_kind_of_answer(mode: str, stub: Stub, client: Client) -> None:
    stub.client.answer("x.example", mode)
    assert await client(stub.url).check_domain("x.example") == MODES[mode]
    [request] = stub.client.requests()
    assert request["path"] == "/api/v1/inbound-relay-domain-check"
    assert request["query"] == "domain=x.example"
    assert request["authorized"]


async def test_the_list(stub: Stub, client: Client) -> None:
    stub.client.answer("yes.example", "allow")
    stub.client.answer("away.example", "bad_gateway")
    assert await client(stub.url).list_domains() == frozenset({"yes.example"})
    [request] = stub.client.list_requests()
    assert (request["path"], request["authorized"]) == ("/api/v1/sender.domains", True)
    assert stub.client.count() == 0


@pytest.mark.parametrize("mode", sorted(MODES.keys() - {"allow"}))
async def test_every_kind_of_no_list(mode: str, stub: Stub, client: Client) -> None:
    stub.client.answer_list(mode)
    result = await client(stub.url).list_domains()
    assert isinstance(result, Outcome)
    assert result.verdict is Verdict.DEFER
    [_] = stub.client.list_requests()  # no redirect is followed, and there is no second request


@pytest.mark.parametrize("mode", ["hang", "drip_header", "drip_body"])
async def test_a_list_that_does_not_come_in_time(mode: str, stub: Stub, client: Client) -> None:
    stub.client.answer_list(mode)
    result = await client(stub.url).list_domains(SHORT)
    assert result == deferred("no answer within 0.5 s", "timeout")


@pytest.mark.parametrize("mode", ["hang", "drip_header", "drip_body"])
async def test_no_answer_in_time_frees_the_thread_and_the_connection(
    mode: str, stub: Stub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_api, "THREADS", dict.fromkeys(LookupKind, 1))
    stub.client.answer("slow.example", mode, interval_ms=100)
    stub.client.answer("x.example", "allow")
    tested = client(stub.url, SHORT)
    assert await tested.check_domain("slow.example") == deferred(
        "no answer within 0.5 s", "timeout"
    )
    tested._lookup_seconds = PATIENCE
    assert await tested.check_domain("x.example") == ALLOW


async def test_question_that_waited_too_long_for_a_thread(
    stub: Stub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_api, "THREADS", dict.fromkeys(LookupKind, 1))
    started: list[str] = []
    fetch = PlatformClient._run_in_thread

    def spy(tested: PlatformClient, *arguments: Any) -> Outcome:
        started.append(arguments[-1].arguments["params"]["domain"])
        return fetch(tested, *arguments)

    monkeypatch.setattr(PlatformClient, "_run_in_thread", spy)
    stub.client.default("hang")
    tested = client(stub.url)
    first = asyncio.create_task(tested.check_domain("first.example"))
    await eventually_async(lambda: stub.client.count() == 1)
    tested._lookup_seconds = SHORT
    answers = await asyncio.gather(
        *(tested.check_domain(f"{number}.example") for number in range(8))
    )
    assert answers == [deferred("no answer within 0.5 s", "timeout")] * 8
    tested._lookup_seconds = PATIENCE
    stub.client.reset()
    stub.client.answer("x.example", "allow")
    assert await tested.check_domain("x.example") == ALLOW
    await first
    # The others were cancelled at their deadline.
    assert started == ["first.example", "x.example"]


async def test_questions_run_at_the_same_time(stub: Stub, client: Client) -> None:
    stub.client.default("hang")
    tested = client(stub.url)
    asked = [
        asyncio.create_task(tested.check_domain(f"{number}.example"))
        for number in range(AT_ONCE + 2)
    ]
    await eventually_async(lambda: stub.client.count() == AT_ONCE)
    stub.client.reset()
    await asyncio.gather(*asked)


async def test_questions_do_not_start_all_at_once(stub: Stub, client: Client) -> None:
    tested = client(stub.url)
    await asyncio.gather(*(tested.check_domain(f"{number}.example") for number in range(21)))
    times = [request["time"] for request in stub.client.requests()]
    assert max(times) - min(times) > 15 * START_INTERVAL_SECONDS


async def test_close_ends_what_is_under_way(stub: Stub, client: Client) -> None:
    stub.client.default("hang")
    tested = client(stub.url)
    asked = asyncio.create_task(tested.check_domain("x.example"))
    await eventually_async(lambda: stub.client.count() == 1)
    tested.close()
    assert (await asked).verdict is Verdict.DEFER


async def test_nobody_listens(stub: Stub, client: Client) -> None:
    stub.client.listen(wanted=False)
    assert await client(stub.url).check_domain("x.example") == deferred(
        "no answer from the platform: Connection refused", "unreachable"
    )


async def test_no_such_host(client: Client) -> None:
    answer = await client("http://platform.invalid/").check_domain("x.example")
    assert answer.verdict is Verdict.DEFER
    assert answer.reason.startswith("no answer from the platform: ")


async def test_path_of_the_platform(stub: Stub, client: Client) -> None:
    assert await client(f"{stub.url}oempro/").check_domain("x.example") == deferred(
        "platform answered 404", "http_error"
    )
    assert stub.client.requests()[0]["path"] == "/oempro/api/v1/inbound-relay-domain-check"


async def test_domain_is_encoded(stub: Stub, client: Client) -> None:
    stub.client.answer("x&domain=y #/?é", "allow")
    assert await client(stub.url).check_domain("x&domain=y #/?é") == ALLOW
    assert stub.client.requests()[0]["domain"] == "x&domain=y #/?é"


async def test_netrc_and_proxies_of_the_environment_are_ignored(
    stub: Stub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    stub.client.answer("x.example", "allow")
    assert await client(stub.url).check_domain("x.example") == ALLOW


async def test_refreshes_do_not_wait_for_unknown_domains(stub: Stub, client: Client) -> None:
    stub.client.default("hang")
    stub.client.answer("good.example", "allow")
    tested = client(stub.url)
    asked = [
        asyncio.create_task(tested.check_domain(f"{number}.example"))
        for number in range(2 * AT_ONCE)
    ]
    await eventually_async(lambda: stub.client.count() == AT_ONCE)
    assert await tested.check_domain("good.example", LookupKind.REFRESH) == ALLOW
    stub.client.reset()
    await asyncio.gather(*asked)


async def test_new_target(stub: Stub, client: Client) -> None:
    stub.client.answer("x.example", "allow")
    tested = client(stub.url, key="wrong")
    assert await tested.check_domain("x.example") == deferred(
        "API key refused (403)", "key_refused"
    )
    tested.set_endpoint(Endpoint(stub.url, API_KEY, Path("/none")))
    assert await tested.check_domain("x.example") == ALLOW


async def test_new_target_lets_a_question_under_way_be_answered(stub: Stub, client: Client) -> None:
    stub.client.answer("x.example", "allow", delay_ms=200)
    tested = client(stub.url)
    asked = asyncio.create_task(tested.check_domain("x.example"))
    await eventually_async(lambda: stub.client.count() == 1)
    tested.set_endpoint(Endpoint(stub.url, "wrong", Path("/none")))
    assert await asked == ALLOW


async def test_new_target_at_the_moment_when_a_question_takes_its_connection(
    stub: Stub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = platform_api._HTTPPool._get_conn
    closed = [True]

    def closed_once(pool: platform_api._HTTPPool, *arguments: Any, **options: Any) -> object:
        if closed:
            closed.pop()
            raise ClosedPoolError(pool, "Pool is closed.")
        return take(pool, *arguments, **options)

    monkeypatch.setattr(platform_api._HTTPPool, "_get_conn", closed_once)
    stub.client.answer("x.example", "allow")
    assert await client(stub.url).check_domain("x.example") == ALLOW


class Script:
    """A server that accepts one connection after the other, and closes each after its responses.

    The list has the pieces of an answer for each request; None closes where one was due.
    """

    def __init__(self, *connections: list[Iterable[bytes] | None]) -> None:
        self._connections = connections
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(PATIENCE)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self.requests: list[bytes] = []
        self.closed = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for answers in self._connections:
            connection, _ = self._listening.accept()
            connection.settimeout(PATIENCE)
            with connection, contextlib.suppress(ConnectionError):
                for answer in answers:
                    self.requests.append(connection.recv(65536))
                    if answer is None:
                        break
                    for piece in answer:
                        connection.sendall(piece)
            self.closed += 1

    def close(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listening.close()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    scripts: list[Script] = []

    def make(*connections: list[Iterable[bytes] | None]) -> Script:
        scripts.append(Script(*connections))
        return scripts[-1]

    yield make
    for made in scripts:
        made.close()


def http(status: int, body: bytes, *headers: bytes) -> list[bytes]:
    length = b"Content-Length: %d" % len(body)
    return [b"\r\n".join([b"HTTP/1.1 %d X" % status, length, *headers, b"", body])]


YES = http(200, b'{"Success":true}')
NO = http(500, b"{}")


async def test_one_connection_serves_many_questions(
    script: Callable[..., Script], client: Client
) -> None:
    server = script([YES, NO, http(500, b"<html>"), YES])
    tested = client(server.url)
    answers = [await tested.check_domain("x.example") for _ in range(4)]
    assert answers == [ALLOW, DENY, MODES["error_html"], ALLOW]


async def test_headers(script: Callable[..., Script], client: Client) -> None:
    server = script([YES])
    await client(server.url).check_domain("x.example")
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /api/v1/inbound-relay-domain-check?domain=x.example HTTP/1.1"
    assert set(lines[1:]) - {""} == {
        f"Host: {server.url.split('/')[2]}",
        "User-Agent: mx-validator",
        "Accept: application/json",
        "Accept-Encoding: identity",
        "Connection: keep-alive",
        f"Authorization: Bearer {API_KEY}",
    }


async def test_idle_connection_is_probed(
    stub: Stub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int]] = []
    watch = platform_api._CallInFlight.attach

    def spy(call: platform_api._CallInFlight, connection: socket.socket) -> None:
        for level, option in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        ):
            found.append((option, connection.getsockopt(level, option)))
        watch(call, connection)

    monkeypatch.setattr(platform_api._CallInFlight, "attach", spy)
    await client(stub.url).check_domain("x.example")
    assert found == [(socket.SO_KEEPALIVE, 1), (socket.TCP_KEEPIDLE, 30), (socket.TCP_NODELAY, 1)]


async def test_connection_closed_while_idle(script: Callable[..., Script], client: Client) -> None:
    server = script([YES], [YES])
    tested = client(server.url)
    assert await tested.check_domain("x.example") == ALLOW
    await eventually_async(lambda: server.closed == 1)
    assert await tested.check_domain("x.example") == ALLOW


async def test_connection_closed_just_when_it_is_used_again(
    script: Callable[..., Script], client: Client
) -> None:
    server = script([YES, None], [YES])
    tested = client(server.url)
    assert await tested.check_domain("x.example") == ALLOW
    assert await tested.check_domain("x.example") == ALLOW
    assert len(server.requests) == 3


async def test_all_idle_connections_closed_by_a_restart(stub: Stub, client: Client) -> None:
    stub.client.default("hang")
    tested = client(stub.url)
    asked = [
        asyncio.create_task(tested.check_domain(f"{number}.example")) for number in range(AT_ONCE)
    ]
    await eventually_async(lambda: stub.client.count() == AT_ONCE)
    stub.client.default("allow")
    stub.client.reset()
    await asyncio.gather(*asked)
    stub.client.default("allow", delay_ms=100)
    asked = [
        asyncio.create_task(tested.check_domain(f"{number}.example")) for number in range(AT_ONCE)
    ]
    await asyncio.gather(*asked)
    stub.client.listen(wanted=False)
    stub.client.listen(wanted=True)
    for number in range(AT_ONCE):
        assert await tested.check_domain(f"{number}.example") == ALLOW


async def test_no_second_try_on_a_new_connection(
    script: Callable[..., Script], client: Client
) -> None:
    server = script([None])
    assert await client(server.url).check_domain("x.example") == deferred(
        "no answer from the platform: Remote end closed connection without response",
        "unreachable",
    )
    assert len(server.requests) == 1


async def test_tries_end_when_every_connection_breaks_at_its_second_use(
    script: Callable[..., Script], client: Client
) -> None:
    server = script([YES, None], [YES, None], [YES])
    tested = client(server.url)
    assert [await tested.check_domain("x.example") for _ in range(3)] == [ALLOW] * 3
    assert len(server.requests) == 5


async def test_last_try_is_on_a_new_connection(
    script: Callable[..., Script], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_api, "THREADS", dict.fromkeys(LookupKind, 1))
    server = script([YES, None], [None])
    tested = client(server.url)
    assert await tested.check_domain("x.example") == ALLOW
    assert (await tested.check_domain("x.example")).verdict is Verdict.DEFER
    assert len(server.requests) == 3


async def test_no_second_try_when_an_answer_has_begun(
    script: Callable[..., Script], client: Client
) -> None:
    server = script([YES, [b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"]])
    tested = client(server.url)
    assert await tested.check_domain("x.example") == ALLOW
    assert (await tested.check_domain("x.example")).verdict is Verdict.DEFER
    assert len(server.requests) == 2


CUT_SHORT = {
    "length": [b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n{}"],
    "chunk": [b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"],
    "header": [b"HTTP/1.1 500 X\r\nContent-Le"],
    "status": [b"HTTP/1.1 50"],
    "no http": [b"220 mail.example.org ESMTP\r\n"],
    "no status": [b"HTTP/1.1 abc\r\n\r\n"],
    "too many headers": [b"HTTP/1.1 500 X\r\n", *[b"a: b\r\n"] * 200, b"\r\n{}"],
    "long header": [b"HTTP/1.1 500 X\r\nA: ", b"x" * 100_000],
    "bad chunk": [b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"],
    "bad length": [b"HTTP/1.1 500 X\r\nContent-Length: abc\r\n\r\n{}"],
    "packed": http(200, bytes.fromhex("1f8b08000000000000ffab5602"), b"Content-Encoding: gzip"),
}


@pytest.mark.parametrize("name", CUT_SHORT)
async def test_broken_answers(name: str, script: Callable[..., Script], client: Client) -> None:
    server = script([CUT_SHORT[name]])
    assert (await client(server.url).check_domain("x.example")).verdict is Verdict.DEFER


async def test_body_without_a_length(script: Callable[..., Script], client: Client) -> None:
    chunked = [b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n", b'8\r\n{"Succes\r\n']
    chunked.append(b'8\r\ns":true}\r\n0\r\n\r\n')
    server = script([chunked, [b"HTTP/1.1 500 X\r\n\r\n{}"]])
    tested = client(server.url)
    assert [await tested.check_domain("x.example") for _ in range(2)] == [ALLOW, DENY]


async def test_largest_body(script: Callable[..., Script], client: Client) -> None:
    body = b'{"Success":true}'.ljust(MAX_CHECK_BYTES)
    server = script([http(200, body), http(200, body + b" ")])
    tested = client(server.url)
    assert await tested.check_domain("x.example") == ALLOW
    assert await tested.check_domain("x.example") == MODES["huge"]


async def test_redirect_with_an_endless_body(script: Callable[..., Script], client: Client) -> None:
    endless = itertools.chain(
        [b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"], itertools.repeat(b"x" * 65536)
    )
    server = script([endless])
    assert await client(server.url).check_domain("x.example") == deferred(
        f"platform answered 302, a redirect to {OTHER_PATH}", "http_error"
    )


async def test_refusal_of_the_key_counts_whatever_its_body(
    script: Callable[..., Script], client: Client
) -> None:
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000000\r\n\r\n"
    server = script([itertools.chain([head], itertools.repeat(b"x" * 65536))])
    assert await client(server.url).check_domain("x.example") == MODES["forbidden"]


async def test_redirect_to_another_host_does_not_get_the_key(
    stub: Stub, script: Callable[..., Script], client: Client
) -> None:
    server = script([http(302, b"", b"Location: " + stub.url.encode())])
    assert await client(server.url).check_domain("x.example") == deferred(
        f"platform answered 302, a redirect to {stub.url}: set oempro_url to it", "http_error"
    )
    assert stub.client.count() == 0


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("https://oempro.example.com/api?domain=x.example", "https://oempro.example.com/"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443/"),
        ("//oempro.example.com/", ""),
        ("https://user:key@oempro.example.com/", ""),
        ("https://oempro.example.com\x1b[31m/", ""),
        ("https://" + "x" * 300 + "/", ""),
    ],
)
async def test_redirect_is_named_without_path_and_user(
    script: Callable[..., Script], client: Client, location: str, named: str
) -> None:
    server = script([http(301, b"", b"Location: " + location.encode())])
    outcome = await client(server.url).check_domain("x.example")
    said = f"{named}: set oempro_url to it" if named else OTHER_PATH
    assert outcome == deferred(f"platform answered 301, a redirect to {said}", "http_error")


async def test_cookies_are_not_sent_back(script: Callable[..., Script], client: Client) -> None:
    server = script([http(500, b"{}", b"Set-Cookie: PHPSESSID=abc; path=/"), YES])
    tested = client(server.url)
    assert [await tested.check_domain("x.example") for _ in range(2)] == [DENY, ALLOW]
    assert b"Cookie" not in server.requests[1]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of it for `localhost`, and another CA."""
    directory = tmp_path_factory.mktemp("certificates")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    for name in ("ca", "other"):
        extensions = ["-addext", "keyUsage=critical,keyCertSign"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl("req", "-x509", *new_key, "-subj", f"/CN={name}", *extensions, *files)
    openssl("req", *new_key, "-subj", "/CN=x", "-keyout", "host.key", "-out", "host.csr")
    (directory / "extensions").write_text(
        "subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n"
    )
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions"]
    openssl("x509", "-req", "-in", "host.csr", *signing, "-out", "host.pem")
    return directory


@pytest.fixture
def tls_stub(certificates: Path) -> Iterator[Stub]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "host.pem", certificates / "host.key")
    server = PlatformStub(API_KEY, tls=tls)
    server.start()
    yield Stub(server.url.replace("127.0.0.1", "localhost"), StubClient(server.control_url))
    server.state.reset()
    server.stop()


@pytest.mark.parametrize("mode", ["allow", "deny", "huge"])
async def test_tls(mode: str, tls_stub: Stub, certificates: Path, client: Client) -> None:
    tls_stub.client.answer("x.example", mode)
    tested = client(tls_stub.url, ca_file=certificates / "ca.pem")
    assert [await tested.check_domain("x.example") for _ in range(2)] == [MODES[mode]] * 2


@pytest.mark.parametrize("mode", ["hang", "drip_header", "drip_body"])
async def test_tls_no_answer_in_time(
    mode: str,
    tls_stub: Stub,
    certificates: Path,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform_api, "THREADS", dict.fromkeys(LookupKind, 1))
    tls_stub.client.answer("slow.example", mode, interval_ms=100)
    tls_stub.client.answer("x.example", "allow")
    tested = client(tls_stub.url, ca_file=certificates / "ca.pem")
    # The first lookup is on a new connection, the second on the same one.
    assert await tested.check_domain("x.example") == ALLOW
    tested._lookup_seconds = SHORT
    assert await tested.check_domain("slow.example") == deferred(
        "no answer within 0.5 s", "timeout"
    )
    tested._lookup_seconds = PATIENCE
    assert await tested.check_domain("x.example") == ALLOW


async def test_tls_connections_closed_by_a_restart(
    tls_stub: Stub, certificates: Path, client: Client
) -> None:
    tls_stub.client.default("allow")
    tested = client(tls_stub.url, ca_file=certificates / "ca.pem")
    assert await tested.check_domain("x.example") == ALLOW
    tls_stub.client.listen(wanted=False)
    tls_stub.client.listen(wanted=True)
    assert await tested.check_domain("x.example") == ALLOW


async def test_tls_of_another_ca(tls_stub: Stub, certificates: Path, client: Client) -> None:
    answer = await client(tls_stub.url, ca_file=certificates / "other.pem").check_domain(
        "x.example"
    )
    assert answer == deferred(
        "TLS to the platform failed: unable to get local issuer certificate", "tls"
    )
    assert tls_stub.client.count() == 0


async def test_tls_of_another_host(tls_stub: Stub, certificates: Path, client: Client) -> None:
    url = tls_stub.url.replace("localhost", "127.0.0.1")
    answer = await client(url, ca_file=certificates / "ca.pem").check_domain("x.example")
    assert answer.verdict is Verdict.DEFER
    assert answer.reason.startswith("TLS to the platform failed: ")
    assert "'127.0.0.1'" in answer.reason
    assert tls_stub.client.count() == 0


async def test_no_certificates_to_verify_with(tls_stub: Stub, client: Client) -> None:
    answer = await client(tls_stub.url, ca_file="/nothing.pem").check_domain("x.example")
    assert answer.verdict is Verdict.DEFER
    assert "/nothing.pem" in answer.reason


async def test_no_tls_where_https_is_expected(
    stub: Stub, certificates: Path, client: Client
) -> None:
    url = stub.url.replace("http:", "https:")
    answer = await client(url, ca_file=certificates / "ca.pem").check_domain("x.example")
    assert answer.verdict is Verdict.DEFER
    assert answer.reason.startswith("TLS to the platform failed: ")


async def test_handshake_that_never_comes(certificates: Path, client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/"
        tested = client(url, SHORT, ca_file=certificates / "ca.pem")
        assert await tested.check_domain("x.example") == deferred(
            "no answer within 0.5 s", "timeout"
        )
        silent.settimeout(PATIENCE)
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(PATIENCE)
            # The handshake's first message, and then the end: the thread does not wait any more.
            while connection.recv(65536):
                pass


async def test_connection_that_was_made_too_late_is_closed(
    script: Callable[..., Script], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    connect = HTTPConnection._new_conn

    def slowly(connection: HTTPConnection) -> socket.socket:
        ended.wait(PATIENCE)
        return connect(connection)

    monkeypatch.setattr(HTTPConnection, "_new_conn", slowly)
    server = script([None])
    assert await client(server.url, 0.01).check_domain("x.example") == deferred(
        "no answer within 0.01 s", "timeout"
    )
    ended.set()
    await eventually_async(lambda: server.closed)
    assert server.requests == [b""]


async def test_error_that_nobody_thought_of_is_not_hidden(
    stub: Stub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_status: int, _body: bytes) -> None:
        raise AssertionError("surprise")

    monkeypatch.setattr(platform_api, "parse_check", broken)
    with pytest.raises(AssertionError, match="surprise"):
        await client(stub.url).check_domain("x.example")
