from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import DUNNO, OK, RETRY, DaemonProcess, Stub
from mx_validator import cli, database
from mx_validator.daemon import OPEN_FILES, allow_open_files
from support import PATIENCE, eventually
from test_store import filled


def test_check(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    stub.client.answer("away.example", "bad_gateway")
    daemon.start()
    for domain, code, text in (
        ("yes.example", 0, "ALLOW (platform says yes; asked just now)"),
        ("YES.example.", 0, "ALLOW (platform says yes; from memory, 0 s old)"),
        ("no.example", 1, "DENY (platform says no; asked just now)"),
        ("away.example", 75, "DEFER (platform answered 502; asked just now)"),
        ("joe@YES.example", 0, "ALLOW (platform says yes; from memory, 0 s old)"),
        ("nonsense", 1, "DENY (not a domain name)"),
        ("joe@nonsense", 1, "DENY (not a domain name)"),
        ("bücher.example", 1, "DENY (platform says no; asked just now)"),
    ):
        result = daemon.run("check", domain)
        assert (result.returncode, result.stderr) == (code, "")
        assert result.stdout.startswith(f"{domain}: {text}".split(" 0 s old")[0])


def test_check_cannot_be_used_to_speak_the_protocol(daemon: DaemonProcess) -> None:
    daemon.start()
    result = daemon.run("check", "x.example\ndomain=yes.example")
    assert result.returncode == 1
    assert result.stdout == "'x.example\\ndomain=yes.example': DENY (not a domain name)\n"


def test_check_when_nobody_is_there(daemon: DaemonProcess) -> None:
    result = daemon.run("check", "x.example")
    assert result.returncode == 69
    assert result.stderr == (
        f"mx-validator: no answer from the daemon on {daemon.socket}: No such file or directory\n"
    )


def test_check_says_where_an_answer_comes_from(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.configure(allow_ttl_seconds=0, api_rate_per_second=1, api_burst=1)
    daemon.start()
    assert daemon.ask("joe@yes.example") == OK
    stub.client.listen(wanted=False)
    result = daemon.run("check", "yes.example")
    assert re.search(r"ALLOW \(platform said yes; known good, confirmed \d+ s ago\)", result.stdout)
    stub.client.listen(wanted=True)

    stop = threading.Event()

    def flood() -> None:
        """Use up each token: the bucket may have one again when the command has started."""
        while not stop.is_set():
            daemon.ask("joe@made-up.example")

    daemon.configure(deny_ttl_seconds=0, api_rate_per_second=1, api_burst=1)
    daemon.signal(signal.SIGHUP)
    refused = "DEFER (over 1 unknown domains a second; not asked now)"
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        eventually(lambda: refused in daemon.run("check", "one-more.example").stdout)
    finally:
        stop.set()
        thread.join()


def test_domains(daemon: DaemonProcess, stub: Stub) -> None:
    none_yet = daemon.run("domains")
    assert (none_yet.returncode, none_yet.stdout) == (0, "")
    daemon.store.mkdir()
    unreadable = daemon.run("domains")
    assert unreadable.returncode == 69
    assert unreadable.stderr.startswith(f"mx-validator: {daemon.store}: damaged (")
    daemon.store.rmdir()
    stub.client.default("allow")
    daemon.start()
    for domain in ("a.example", "b.example"):
        daemon.ask(f"joe@{domain}")
    lines = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ a\.example\n\S+ b\.example\n"
    eventually(lambda: re.fullmatch(lines, daemon.run("domains").stdout))
    read, write = os.pipe()
    os.close(read)  # as `| head` does
    piped = subprocess.run(
        daemon.command("domains"),
        env={**daemon.environ, "PYTHONUNBUFFERED": ""},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    os.close(write)
    assert (piped.returncode, piped.stderr) == (0, b"")


def test_domains_on_the_platforms_list(daemon: DaemonProcess, stub: Stub) -> None:
    for domain in ("b.example", "a.example"):
        stub.client.answer(domain, "allow")
    listed = daemon.run("domains", "--platform")
    assert (listed.returncode, listed.stdout) == (0, "a.example\nb.example\n")
    stub.client.answer_list("forbidden")
    refused = daemon.run("domains", "--platform")
    reason = "no list of the platform's domains: API key refused (403)"
    assert (refused.returncode, refused.stderr) == (69, f"mx-validator: {reason}\n")


def test_domains_of_a_damaged_file(daemon: DaemonProcess) -> None:
    filled(daemon.store, 3)
    with contextlib.closing(sqlite3.connect(daemon.store)) as connection:
        connection.execute("UPDATE known_good SET confirmed = ? WHERE id = 2", (float("-inf"),))
        connection.commit()
    result = daemon.run("domains")
    assert result.returncode == 69
    assert (
        result.stdout == "1970-01-01T00:00:00Z 00000.example\n1970-01-01T00:00:02Z 00002.example\n"
    )
    assert result.stderr == (
        f"mx-validator: {daemon.store}: damaged (invalid rows): 1 of them cannot be read\n"
    )


def test_a_damaged_row_does_not_keep_the_daemon_from_its_work(
    daemon: DaemonProcess, stub: Stub
) -> None:
    filled(daemon.store, 3)
    with contextlib.closing(sqlite3.connect(daemon.store)) as connection:
        for number in range(3):
            values = database.make_row(f"{number:05}.example", time.time() - 1)
            connection.execute(database.UPSERT, values)
        connection.execute("UPDATE known_good SET confirmed = 'x' WHERE domain = '00001.example'")
        connection.commit()
    stub.client.default("bad_gateway")
    daemon.start()
    assert [daemon.ask(f"joe@0000{number}.example") for number in range(3)] == [OK, RETRY, OK]
    mended = "on disk:     up to date; was damaged and written anew, 1 domains were lost\n"
    eventually(lambda: mended in daemon.run("status").stdout)
    domains = daemon.run("domains")
    assert (domains.returncode, len(domains.stdout.splitlines())) == (0, 2)
    daemon.stop()
    daemon.start()
    assert "on disk:     up to date\n" in daemon.run("status").stdout
    assert daemon.log.count("are damaged") == 1


def test_forget(daemon: DaemonProcess, stub: Stub) -> None:
    stub.client.answer("yes.example", "allow")
    daemon.start()
    daemon.ask("joe@yes.example")
    eventually(lambda: daemon.run("domains").stdout)
    for domain, code, text in (
        ("YES.example", 0, "forgotten"),
        ("yes.example", 1, "nothing was known of it"),
        ("joe@yes.example", 1, "nothing was known of it"),
        ("joe@yes", 1, "not a domain name"),
    ):
        result = daemon.run("forget", domain)
        assert (result.returncode, result.stdout) == (code, f"{domain}: {text}\n")
    eventually(lambda: not daemon.run("domains").stdout)
    stub.client.answer("yes.example", "deny")
    assert daemon.ask("joe@yes.example") == DUNNO


def test_status(daemon: DaemonProcess, stub: Stub) -> None:
    assert daemon.run("status").returncode == 69
    stub.client.default("allow")
    daemon.start()
    unasked = daemon.run("status")
    assert unasked.returncode == 0
    assert "platform:    not asked yet\n" in unasked.stdout
    daemon.ask("joe@yes.example")
    well = daemon.run("status")
    assert well.returncode == 0
    assert "platform:    answers; last verdict " in well.stdout
    assert "known good:  1 domains, confirmed " in well.stdout
    for_programs = json.loads(daemon.run("status", "--json").stdout)
    assert for_programs["known_good"] == 1
    assert 0 < for_programs["lookup_seconds"] < 60
    stub.client.default("forbidden")
    daemon.ask("joe@other.example")
    refused = daemon.run("status")
    assert refused.returncode == 75
    assert "API key:     REFUSED" in refused.stdout
    assert "mail queue:  takes mail" in refused.stdout


@pytest.mark.parametrize(
    ("command", "arguments"), [("check", ["x.example"]), ("status", []), ("forget", ["x.example"])]
)
@pytest.mark.parametrize("reply", [b"action=DUNNO\n\n", b'status={"x":1}\nresult=x\nverdict=x\n\n'])
def test_another_daemon_on_the_socket(
    command: str,
    arguments: list[str],
    reply: bytes,
    daemon: DaemonProcess,
    fake_daemon: dict[str, bytes],
) -> None:
    fake_daemon["reply"] = reply
    code = cli.main([command, *arguments, "--config", str(daemon.config)])
    assert code == (1 if command == "forget" and b"result" in reply else 69)


@pytest.fixture
def fake_daemon(daemon: DaemonProcess) -> Iterator[dict[str, bytes]]:
    """A daemon that accepts one connection, sends `reply`, and closes it unless told to `wait`."""
    behaviour: dict[str, bytes] = {}
    done = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(BrokenPipeError):
            connection.recv(65536)
            connection.sendall(behaviour["reply"])
            if "wait" in behaviour:
                done.wait(PATIENCE)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(daemon.socket))
        listening.listen()
        listening.settimeout(PATIENCE)
        thread = threading.Thread(target=serve)
        thread.start()
        yield behaviour
        done.set()
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "no complete reply"),
        (b"verdict=ALLOW\n", "no complete reply"),
        (b"action=DUNNO\n\n", "'source'"),
        (b"verdict=MAYBE\nreason=x\nsource=memory\nage_seconds=0\n\n", "'MAYBE'"),
        (b"x" * 100_000, "no complete reply"),
    ],
)
def test_check_when_somebody_else_is_there(
    reply: bytes,
    reason: str,
    daemon: DaemonProcess,
    fake_daemon: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_daemon["reply"] = reply
    assert cli.main(["check", "x.example", "--config", str(daemon.config)]) == 69
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("reply", [b"", b"verdict=ALLOW\n"])
def test_check_does_not_wait_for_ever(
    reply: bytes,
    daemon: DaemonProcess,
    fake_daemon: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "REPLY_SECONDS", 0.2)
    fake_daemon.update(reply=reply, wait=b"")
    assert cli.main(["check", "x.example", "--config", str(daemon.config)]) == 69
    assert "timed out" in capsys.readouterr().err


def test_check_config(daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check-config", str(daemon.config)]
    assert cli.main(arguments) == 0
    daemon.key.write_text("s3cret key")
    assert cli.main(arguments) == 78
    daemon.key.unlink()
    assert cli.main(arguments) == 0
    daemon.key.mkdir()
    assert cli.main(arguments) == 78
    daemon.configure(level="loud")
    assert cli.main(arguments) == 78
    output = capsys.readouterr()
    assert output.out == ""
    first, second, third = output.err.splitlines()
    assert first.startswith(f"mx-validator: {daemon.key}: the API key has blanks")
    assert second.endswith("cannot read the API key: Is a directory")
    assert third.startswith(f"mx-validator: {daemon.config}: [log] level is 'loud'")
    assert "s3cret" not in output.err


def test_the_sample_configuration_is_taken(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    sample = tmp_path / "sample.conf"
    sample.write_text(readme.partition("```ini\n")[2].partition("```")[0])
    assert cli.main(["check-config", str(sample)]) == 0


@pytest.mark.parametrize("command", [["check", "x.example"], ["serve"], ["check-config"]])
def test_configuration_missing(command: list[str], tmp_path: Path, daemon: DaemonProcess) -> None:
    daemon.config.unlink()
    if command == ["check-config"]:
        assert cli.main(["check-config", str(tmp_path / "nothing")]) == 78
    else:
        result = daemon.run(*command)
        assert result.returncode == 78
        assert f"{daemon.config}: cannot be read: No such file or directory" in result.stderr


def test_unexpected_error_ends_the_daemon_for_sure(daemon: DaemonProcess) -> None:
    (daemon.directory / "sitecustomize.py").write_text(
        "import threading, time, mx_validator.daemon\n"
        "async def run(_):\n"
        "    threading.Thread(target=time.sleep, args=(3600,)).start()\n"
        "    raise KeyError('surprise')\n"
        "mx_validator.daemon.run = run\n"
    )
    daemon.environment["PYTHONPATH"] = f"{daemon.directory}:{daemon.environ['PYTHONPATH']}"
    result = daemon.run("serve")
    assert result.returncode == 70
    assert "CRITICAL ended by an unexpected error\\nTraceback" in result.stderr
    assert "KeyError: 'surprise'\n" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["check"], ["check", "a", "b"], ["serve", "--loud"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 64
    assert "usage: mx-validator" in capsys.readouterr().err


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["check", "--help"])
    assert caught.value.code == 0
    assert "0 ALLOW, 1 DENY, 75 DEFER" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 20000), (OPEN_FILES, 20000)),
        ((256, 1100), (1100, 1100)),
        ((1024, resource.RLIM_INFINITY), (OPEN_FILES, resource.RLIM_INFINITY)),
        ((4096, 20000), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_open_files(
    limits: tuple[int, int], expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: changed.append(new))
    allow_open_files()
    assert changed == ([] if expected is None else [expected])
