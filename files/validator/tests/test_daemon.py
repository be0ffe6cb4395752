from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_stub import PlatformStub, StubClient

from conftest import API_KEY, DUNNO, OK, RETRY, DaemonProcess, Stub, read_reply, request_for
from mx_validator.store import SqliteStore
from support import PATIENCE, eventually, free_port


@pytest.fixture
def other_stub() -> Iterator[Stub]:
    server = PlatformStub(API_KEY)
    server.start()
    yield Stub(server.url, StubClient(server.control_url))
    server.stop()


def reload(daemon: DaemonProcess, sign: str) -> None:
    seen = daemon.log.count(sign)
    daemon.signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count(sign) > seen)


def test_answers(daemon: DaemonProcess, stub: Stub) -> None:
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


def test_log_names_the_domain_and_never_the_local_part(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    stub.client.answer("away.example", "reset")
    daemon.start()
    for domain in ("@yes.example", "@no.example", "@away.example", "", "@[1]", "@x\n\ny=", "\0@x"):
        for local in ("j0hn.d0e", '"j0hn@d0e'):
            daemon.ask(f"{local}{domain}")
            daemon.ask(f"{local}{domain}")
    daemon.stop()  # a thread writes the log: now it is complete
    assert ' INFO verdict=ALLOW domain=yes.example source=platform reason="' in daemon.log
    assert ' DEBUG verdict=ALLOW domain=yes.example source=memory reason="' in daemon.log
    assert " WARNING closing a connection: " in daemon.log
    assert "j0hn" not in daemon.log
    assert "d0e" not in daemon.log


def test_restart_after_a_kill(daemon: DaemonProcess) -> None:
    daemon.start()
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO


def test_second_copy_is_refused(daemon: DaemonProcess) -> None:
    daemon.start()
    second = daemon.run("serve")
    assert second.returncode == 73
    assert "CRITICAL cannot serve: another copy is running: it holds " in second.stderr
    assert daemon.ask("joe@no.example") == DUNNO


def test_directory_of_the_socket_missing(daemon: DaemonProcess) -> None:
    daemon.socket = daemon.directory / "nowhere" / "policy"
    daemon.configure()
    result = daemon.run("serve")
    assert result.returncode == 73
    assert "CRITICAL cannot serve: [Errno 2] No such file or directory" in result.stderr


def test_no_key_no_start(daemon: DaemonProcess) -> None:
    daemon.key.unlink()
    result = daemon.run("serve")
    assert result.returncode == 78
    assert f"CRITICAL {daemon.key}: cannot read the API key" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_waits_for_the_answer_under_way(
    number: signal.Signals, daemon: DaemonProcess, stub: Stub
) -> None:
    stub.client.answer("slow.example", "hang")
    daemon.start()
    with daemon.connect() as busy, daemon.connect() as idle:
        busy.sendall(request_for("joe@slow.example"))
        eventually(lambda: stub.client.count() == 1)
        daemon.signal(number)
        assert idle.recv(1) == b""
        with daemon.connect() as late:
            stub.client.reset()
            # The client may retry the lookup, if it was not the first on its connection.
            assert read_reply(busy) in {RETRY, DUNNO}
            assert busy.recv(1) == b""
            with pytest.raises(ConnectionResetError):
                late.recv(1)
    assert daemon.wait() == 0
    assert not daemon.socket.exists()


def test_end_does_not_wait_for_a_silent_platform(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("slow.example", "hang")
    daemon.start()
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@slow.example"))
        eventually(lambda: stub.client.count() == 1)
        daemon.signal(signal.SIGTERM)
        # Without a reply, Postfix asks the next daemon.
        assert read_reply(connection) == b""
    assert daemon.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(
    number: signal.Signals, daemon: DaemonProcess, stub: Stub
) -> None:
    stub.client.answer("slow.example", "hang")
    daemon.start()
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@slow.example"))
        eventually(lambda: stub.client.count() == 1)
        daemon.signal(number)
        eventually(lambda: "finishing 1 answers" in daemon.log)
        daemon.signal(number)
        assert daemon.wait() == -number


def test_end_does_not_wait_for_a_stuck_dns_lookup(daemon: DaemonProcess) -> None:
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


def test_sighup_brings_a_new_platform_and_loses_nothing_known_good(
    daemon: DaemonProcess, stub: Stub, other_stub: Stub
) -> None:
    stub.client.answer("yes.example", "allow")
    other_stub.client.answer("no.example", "allow")
    daemon.start()
    assert daemon.ask("joe@yes.example") == OK
    assert daemon.ask("joe@no.example") == DUNNO
    daemon.url = other_stub.url
    daemon.configure()
    reload(daemon, "INFO reloaded, asking " + other_stub.url)
    assert daemon.ask("joe@no.example") == OK
    assert daemon.ask("joe@yes.example") == OK
    eventually(lambda: other_stub.client.count() == 2)
    assert stub.client.count() == 2


def test_sighup_brings_a_new_key_and_keeps_the_verdicts(daemon: DaemonProcess, stub: Stub) -> None:
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO
    daemon.key.write_text("wrong")
    reload(daemon, "INFO reloaded")
    assert daemon.ask("joe@no.example") == DUNNO
    assert stub.client.count() == 1
    assert daemon.ask("joe@other.example") == RETRY
    daemon.key.write_text(API_KEY)
    reload(daemon, "INFO reloaded")
    assert daemon.ask("joe@other.example") == DUNNO
    daemon.stop()  # a thread writes the log: now it is complete
    assert daemon.log.count("API key refused (403): put") == 1
    assert f"ERROR API key refused (403): put the right one into {daemon.key}" in daemon.log


def test_sighup_brings_new_ttls_and_the_log_level(daemon: DaemonProcess, stub: Stub) -> None:
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO
    daemon.configure(level="info", deny_ttl_seconds=0)
    reload(daemon, "INFO reloaded")
    assert daemon.ask("joe@no.example") == DUNNO
    assert stub.client.count() == 2
    daemon.stop()
    assert "DEBUG" not in daemon.log


def test_sighup_with_a_mistake_changes_nothing(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.start()
    daemon.configure(oempro_url="nonsense")
    reload(daemon, "ERROR not reloaded, everything stays as it was: ")
    assert "[platform] oempro_url is 'nonsense'" in daemon.log
    daemon.configure()
    # A file of another version, which the playbook may write before it restarts the daemon.
    daemon.config.write_text(daemon.config.read_text().replace("oempro_url", "url"))
    reload(daemon, "ERROR not reloaded, everything stays as it was: ")
    assert "[platform] url is not known" in daemon.log
    daemon.configure()
    daemon.key.unlink()
    reload(daemon, "ERROR not reloaded, everything stays as it was: ")
    assert "cannot read the API key" in daemon.log
    assert daemon.ask("joe@yes.example") == OK


def test_sighup_does_not_move_the_socket(daemon: DaemonProcess) -> None:
    daemon.start()
    place = daemon.socket
    daemon.socket = daemon.directory / "elsewhere"
    daemon.configure()
    reload(daemon, f"WARNING socket stays {place} until a restart")
    daemon.socket = place
    assert daemon.ask("joe@no.example") == DUNNO


def test_postfix_finds_an_answer_or_nobody_through_restarts_and_kills(
    daemon: DaemonProcess,
) -> None:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_known_good_outlives_the_process(
    number: signal.Signals, daemon: DaemonProcess, stub: Stub
) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.configure(allow_ttl_seconds=0)
    daemon.start()
    assert daemon.ask("joe@yes.example") == OK
    eventually(lambda: "yes.example" in daemon.run("domains").stdout)
    daemon.signal(number)
    daemon.wait()
    stub.client.listen(wanted=False)
    daemon.start()
    assert "INFO 1 known-good domains loaded" in daemon.log
    assert daemon.ask("joe@yes.example") == OK
    assert daemon.ask("joe@no.example") == RETRY


def unused(place: Path) -> set[str]:
    """Return the domains in a file of last mails."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"{place.as_uri()}?mode=ro", uri=True)) as connection,
    ):
        return {str(domain) for (domain,) in connection.execute("SELECT domain FROM known_good")}
    return set()


def test_when_mail_last_came_outlives_the_process(daemon: DaemonProcess, stub: Stub) -> None:
    day = 86400
    place = daemon.store.with_name("last-mail.sqlite")
    stub.client.default("allow")
    for path, kept in (
        (daemon.store, {"left.example": 4 * day, "rare.example": 4 * day}),
        (place, {"left.example": 29 * day, "gone.example": 29 * day}),
    ):
        store = SqliteStore(path)
        store.start()
        for domain, age in kept.items():
            store.save(domain, age)
        store.stop()
    daemon.start()
    eventually(lambda: unused(place) == {"left.example", "rare.example"})
    daemon.stop()
    assert [request["domain"] for request in stub.client.requests()] == ["rare.example"]
    mailed = dict(SqliteStore(place).load())
    assert {domain: round(age / day) for domain, age in mailed.items()} == {
        "left.example": 29,
        "rare.example": 4,
    }


def test_a_damaged_file_of_last_mails_is_begun_anew(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.default("allow")
    store = SqliteStore(daemon.store)
    store.start()
    store.save("rare.example", 4 * 86400)
    store.stop()
    place = daemon.store.with_name("last-mail.sqlite")
    place.write_bytes(b"garbage" * 1000)
    daemon.start()
    eventually(lambda: unused(place) == {"rare.example"})
    assert daemon.ask("joe@rare.example") == OK


FIRST_MAILS = 600  # each for another domain of the platform
CLIENTS = 8  # concurrent smtpd processes


def first_mails(daemon: DaemonProcess, *suffixes: str) -> Counter[bytes]:
    """Send requests as fast as the replies come, for each domain with each suffix in turn."""
    numbers = itertools.count()
    replies: Counter[bytes] = Counter()

    def ask() -> None:
        with daemon.connect() as connection:
            while (number := next(numbers)) < FIRST_MAILS:
                for suffix in suffixes:
                    connection.sendall(request_for(f"joe@{number}.{suffix}"))
                    reply = read_reply(connection)
                    replies[reply if suffix == suffixes[0] else b"made up"] += 1

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def platform_of(stub: Stub, list_mode: str) -> None:
    """A platform with all these domains, which takes 50 ms for each answer."""
    for number in range(FIRST_MAILS):
        stub.client.answer(f"{number}.ours.example", "allow", delay_ms=50)
    stub.client.default("deny", delay_ms=50)
    stub.client.answer_list(list_mode)


@pytest.mark.parametrize("list_mode", ["allow", "not_found", "hang"])
def test_a_daemon_that_begins_defers_no_domain_of_the_platform(
    list_mode: str, daemon: DaemonProcess, stub: Stub
) -> None:
    platform_of(stub, list_mode)
    daemon.configure(api_rate_per_second=20, api_burst=200)  # the role's defaults
    daemon.start()
    assert first_mails(daemon, "ours.example") == {OK: FIRST_MAILS}
    assert len(stub.client.list_requests()) == 1
    assert stub.client.count() == FIRST_MAILS


def test_domains_on_the_list_are_let_in_through_a_flood(daemon: DaemonProcess, stub: Stub) -> None:
    platform_of(stub, "allow")
    daemon.configure(api_rate_per_second=1, api_burst=1)
    daemon.start()
    eventually(lambda: "INFO 600 domains on the platform's list" in daemon.log)
    replies = first_mails(daemon, "ours.example", "made-up.example", "made-up.example")
    assert replies == {OK: FIRST_MAILS, b"made up": 2 * FIRST_MAILS}


def test_the_list_is_asked_for_while_nothing_is_known(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    stub.client.answer_list("forbidden")
    daemon.start()
    reason = "no list of the platform's domains: API key refused (403)"
    eventually(lambda: f"INFO {reason}" in daemon.log)
    assert daemon.ask("joe@no.example") == DUNNO
    assert daemon.run("status").returncode == 0
    stub.client.answer_list("allow")
    reload(daemon, "INFO reloaded")
    eventually(lambda: "INFO 1 domains on the platform's list" in daemon.log)
    assert stub.client.count() == 1  # no lookup of a listed domain before its first mail
    assert daemon.ask("joe@yes.example") == OK
    reload(daemon, "INFO reloaded")
    eventually(lambda: "yes.example" in daemon.run("domains").stdout)
    daemon.stop()
    daemon.start()
    assert daemon.ask("joe@no.example") == DUNNO
    assert len(stub.client.list_requests()) == 2


def test_who_connects_while_it_loads_waits(daemon: DaemonProcess) -> None:
    """Known-good domains are loaded before the first reply."""
    slow = daemon.directory / "sitecustomize.py"
    slow.write_text(
        "import pathlib, time\n"
        "import mx_validator.store as store\n"
        "load = store.SqliteStore.load\n"
        "def slowly(self):\n"
        f"    while not pathlib.Path({str(daemon.directory / 'go')!r}).exists():\n"
        "        time.sleep(0.01)\n"
        "    return load(self)\n"
        "store.SqliteStore.load = slowly\n"
    )
    daemon.environment["PYTHONPATH"] = f"{daemon.directory}:{daemon.environ['PYTHONPATH']}"
    starting = threading.Thread(target=daemon.start)
    starting.start()
    eventually(daemon.socket.exists)
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@no.example"))
        (daemon.directory / "go").touch()
        assert read_reply(connection) == DUNNO
    starting.join(PATIENCE)


def test_a_damaged_store_costs_a_log_line(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.start()
    assert daemon.ask("joe@yes.example") == OK
    daemon.stop()
    daemon.store.write_bytes(b"garbage" * 1000)
    daemon.start()
    assert "ERROR " in daemon.log
    assert daemon.ask("joe@yes.example") == OK
    eventually(lambda: "yes.example" in daemon.run("domains").stdout)


def test_what_was_saved_of_a_damaged_store_is_written_anew(
    daemon: DaemonProcess, stub: Stub
) -> None:
    store = SqliteStore(daemon.store)
    store.start()
    for number in range(5000):
        store.save(f"{number}.example")
    store.stop()
    with daemon.store.open("r+b") as file:
        file.seek(daemon.store.stat().st_size // 2)
        file.write(b"\xff" * 40960)
    daemon.start()
    saved = int(re.findall(r"(\d+) known-good domains loaded", daemon.log)[0])
    assert 100 < saved < 5000
    eventually(lambda: len(daemon.run("domains").stdout.splitlines()) == saved)
    assert daemon.ask("joe@0.example") == OK
    assert stub.client.count() == 0


def test_a_taken_metrics_port_keeps_nobodys_mail_waiting(daemon: DaemonProcess) -> None:
    with socket.create_server(("127.0.0.1", daemon.metrics_port)):
        daemon.start()
        assert f"ERROR no metrics on 127.0.0.1 port {daemon.metrics_port}: " in daemon.log
        assert daemon.ask("joe@no.example") == DUNNO


def test_metrics(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.start()
    daemon.ask("joe@yes.example")
    daemon.ask("joe@yes.example")
    daemon.ask("joe@no.example")
    url = f"http://127.0.0.1:{daemon.metrics_port}"
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as reply:
        metrics = reply.read().decode()
    assert 'mx_validator_answers_total{source="memory",verdict="ALLOW"} 1.0\n' in metrics
    assert 'mx_validator_platform_answers_total{outcome="deny"} 1.0\n' in metrics
    assert "mx_validator_platform_answer_seconds_count 2.0\n" in metrics
    assert "mx_validator_known_good_domains 1.0\n" in metrics
    for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "start_time_seconds"):
        assert re.search(rf"(?m)^process_{name} (?!0\.0$)\d", metrics), name
    assert "example" not in metrics
    daemon.metrics_port = free_port()
    daemon.configure()
    reload(daemon, "INFO reloaded")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    url = f"http://127.0.0.1:{daemon.metrics_port}"
    with urllib.request.urlopen(f"{url}/healthz", timeout=PATIENCE) as reply:
        assert reply.read() == b"ok\n"


def test_a_stuck_loop_ends_the_process(daemon: DaemonProcess) -> None:
    (daemon.directory / "sitecustomize.py").write_text(
        "import time\n"
        "import mx_validator.watchdog as watchdog, mx_validator.policy as policy\n"
        "watchdog.STUCK_SECONDS = 0.5\n"
        "watchdog.Watchdog.__init__.__defaults__ = (0.5,)\n"
        "watchdog.HEARTBEAT_SECONDS = 0.1\n"
        "policy.recipient_domain = lambda _: time.sleep(3600)\n"
    )
    daemon.environment["PYTHONPATH"] = f"{daemon.directory}:{daemon.environ['PYTHONPATH']}"
    daemon.start()
    with daemon.connect() as connection:
        connection.sendall(request_for("joe@no.example"))
        assert read_reply(connection) == b""
    assert daemon.wait() == 1
    assert "Timeout (0:00:00.500000)!" in daemon.log
    assert "policy.py" in daemon.log


def test_launcher(daemon: DaemonProcess, tmp_path: Path) -> None:
    """It finds the code beside it, through the links that lead to it on a host."""
    launcher = Path(__file__).parent.parent / "bin" / "mx-validator"
    code = tmp_path / "code"
    (code / "bin").mkdir(parents=True)
    shutil.copy(launcher, code / "bin")
    (code / "mx_validator").symlink_to(Path(daemon.environ["PYTHONPATH"]) / "mx_validator")
    (tmp_path / "current").symlink_to(code)
    (tmp_path / "command").symlink_to(tmp_path / "current" / "bin" / "mx-validator")
    command = [*daemon.command()[:1], "-I", str(tmp_path / "command"), "check-config"]
    assert subprocess.run([*command, daemon.config], timeout=PATIENCE, check=False).returncode == 0
