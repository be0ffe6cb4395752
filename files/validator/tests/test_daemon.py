from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_stub import PlatformStub, StubClient

from conftest import (
    API_KEY,
    DUNNO,
    OK,
    PATIENCE,
    RETRY,
    Daemon,
    Stub,
    eventually,
    read_reply,
    request_for,
)


@pytest.fixture
def other_stub() -> Iterator[Stub]:
    server = PlatformStub(API_KEY)
    server.start()
    yield Stub(server.url, StubClient(server.control_url))
    server.stop()


def reload(daemon: Daemon, sign: str) -> None:
    seen = daemon.log.count(sign)
    daemon.signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count(sign) > seen)


def test_answers(daemon: Daemon, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    stub.client.answer("away.example", "bad_gateway")
    daemon.start()
    for _ in range(2):
        assert daemon.ask("Bounce+1=joe=example.org@YES.example") == OK
        assert daemon.ask("joe@no.example") == DUNNO
        assert daemon.ask("joe@away.example") == RETRY
        assert daemon.ask("joe@[192.0.2.1]") == DUNNO
        assert daemon.ask("\udcff@yes.example") == OK
        assert daemon.ask("joe") == DUNNO
    asked = [request["domain"] for request in stub.client.requests()]
    assert asked == ["yes.example", "no.example", "away.example", "away.example"]
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not daemon.socket.exists()
    assert daemon.log.endswith(" INFO stopped\n")


def test_log_names_the_domain_and_never_the_local_part(daemon: Daemon, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    stub.client.answer("away.example", "reset")
    daemon.start()
    for domain in ("@yes.example", "@no.example", "@away.example", "", "@[1]", "@x\n\ny=", "\0@x"):
        for local in ("j0hn.d0e", '"j0hn@d0e'):
            daemon.ask(f"{local}{domain}")
            daemon.ask(f"{local}{domain}")
    assert ' INFO verdict=ALLOW domain=yes.example source=platform reason="' in daemon.log
    assert ' DEBUG verdict=ALLOW domain=yes.example source=memory reason="' in daemon.log
    assert " WARNING closing a connection: " in daemon.log
    assert "j0hn" not in daemon.log
    assert "d0e" not in daemon.log


def test_restart_after_a_kill(daemon: Daemon) -> None:
    daemon.start()
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO


def test_second_copy_is_refused(daemon: Daemon) -> None:
    daemon.start()
    second = daemon.run("serve")
    assert second.returncode == 73
    assert "CRITICAL cannot serve: another copy is running: it holds " in second.stderr
    assert daemon.ask("joe@no.example") == DUNNO


def test_directory_of_the_socket_missing(daemon: Daemon) -> None:
    daemon.socket = daemon.directory / "nowhere" / "policy"
    daemon.configure()
    result = daemon.run("serve")
    assert result.returncode == 73
    assert "CRITICAL cannot serve: [Errno 2] No such file or directory" in result.stderr


def test_no_key_no_start(daemon: Daemon) -> None:
    daemon.key.unlink()
    result = daemon.run("serve")
    assert result.returncode == 78
    assert f"CRITICAL {daemon.key}: cannot read the API key" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_waits_for_the_answer_under_way(
    number: signal.Signals, daemon: Daemon, stub: Stub
) -> None:
    stub.client.answer("slow.example", "hang")
    daemon.start()
    with daemon.connect() as busy, daemon.connect() as idle:
        busy.sendall(request_for("joe@slow.example"))
        eventually(lambda: stub.client.count() == 1)
        daemon.signal(number)
        assert idle.recv(1) == b""
        assert not daemon.socket.exists()
        stub.client.reset()
        assert read_reply(busy) == RETRY
        assert busy.recv(1) == b""
    assert daemon.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(number: signal.Signals, daemon: Daemon, stub: Stub) -> None:
    stub.client.answer("slow.example", "hang")
    daemon.start()
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@slow.example"))
        eventually(lambda: stub.client.count() == 1)
        daemon.signal(number)
        eventually(lambda: "finishing 1 answers" in daemon.log)
        daemon.signal(number)
        assert daemon.wait() == -number


def test_end_does_not_wait_for_a_stuck_dns_lookup(daemon: Daemon) -> None:
    stuck = daemon.directory / "stuck"
    (daemon.directory / "sitecustomize.py").write_text(
        "import pathlib, socket, time\n"
        "def getaddrinfo(*_, **__):\n"
        f"    pathlib.Path({str(stuck)!r}).touch()\n"
        "    time.sleep(3600)\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    daemon.environment["PYTHONPATH"] = f"{daemon.directory}:{daemon.environ['PYTHONPATH']}"
    daemon.start()
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@slow.example"))
        eventually(stuck.exists)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


def test_sighup_brings_a_new_platform_and_forgets_the_old_ones_verdicts(
    daemon: Daemon, stub: Stub, other_stub: Stub
) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.start()
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@yes.example"))
        assert read_reply(connection) == OK
        daemon.url = other_stub.url
        daemon.configure()
        reload(daemon, "INFO reloaded, asking " + other_stub.url)
        connection.sendall(request_for("joe@yes.example"))
        assert read_reply(connection) == DUNNO
    assert (stub.client.count(), other_stub.client.count()) == (1, 1)


def test_sighup_brings_a_new_key_and_keeps_the_verdicts(daemon: Daemon, stub: Stub) -> None:
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO
    daemon.key.write_text("wrong")
    reload(daemon, "INFO reloaded")
    assert daemon.ask("joe@no.example") == DUNNO
    assert stub.client.count() == 1
    assert daemon.ask("joe@other.example") == RETRY
    assert f"ERROR API key refused (403): put the right one into {daemon.key}" in daemon.log
    daemon.key.write_text(API_KEY)
    reload(daemon, "INFO reloaded")
    assert daemon.ask("joe@other.example") == DUNNO
    assert "INFO the platform gives verdicts again" in daemon.log


def test_sighup_brings_new_ttls_and_the_log_level(daemon: Daemon, stub: Stub) -> None:
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO
    daemon.configure(level="info", deny_ttl_seconds=0)
    reload(daemon, "INFO reloaded")
    assert daemon.ask("joe@no.example") == DUNNO
    assert stub.client.count() == 2
    assert "DEBUG" not in daemon.log


def test_sighup_with_a_mistake_changes_nothing(daemon: Daemon, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.start()
    daemon.configure(url="nonsense")
    reload(daemon, "ERROR not reloaded, everything stays as it was: ")
    assert "[platform] url is 'nonsense'" in daemon.log
    daemon.configure()
    daemon.key.unlink()
    reload(daemon, "ERROR not reloaded, everything stays as it was: ")
    assert "cannot read the API key" in daemon.log
    assert daemon.ask("joe@yes.example") == OK


def test_sighup_does_not_move_the_socket(daemon: Daemon) -> None:
    daemon.start()
    place = daemon.socket
    daemon.socket = daemon.directory / "elsewhere"
    daemon.configure()
    reload(daemon, f"WARNING the socket stays at {place} until a restart")
    daemon.socket = place
    assert daemon.ask("joe@no.example") == DUNNO


def test_postfix_finds_an_answer_or_nobody_through_restarts_and_kills(daemon: Daemon) -> None:
    stop = threading.Event()
    replies: list[bytes] = []

    def ask_on_and_on() -> None:
        while not stop.wait(0.001):
            try:
                replies.append(daemon.ask("joe@no.example"))
            except (ConnectionError, FileNotFoundError):
                replies.append(b"")

    daemon.start()
    asker = threading.Thread(target=ask_on_and_on)
    asker.start()
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            replies.clear()
            eventually(lambda: DUNNO in replies)
            daemon.signal(number)
            daemon.wait()
            daemon.start()
    finally:
        stop.set()
        asker.join(PATIENCE)
    assert set(replies) <= {DUNNO, b""}


def test_launcher(daemon: Daemon, tmp_path: Path) -> None:
    launcher = Path(__file__).parent.parent / "bin" / "mx-validator"
    source = daemon.environ["PYTHONPATH"]
    here = tmp_path / "mx-validator"
    here.write_text(launcher.read_text().replace("/opt/mx-validator", source))
    command = [*daemon.command()[:1], "-I", str(here), "check-config", str(daemon.config)]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == 0
