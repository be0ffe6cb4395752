"""The platform is away: known-good domains get 250 throughout, unknown ones 451, nobody 5xx."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testinfra.host import Host

from faults import Flow, rebooted
from platform_stub import StubClient
from probes import Mx, eventually

LOG = "/var/log/mx-validator/mx-validator.log"
STORE = "/var/lib/mx-validator/known-good.sqlite"
REFUSE = "refuse"  # not a mode of the stub's: it does not listen
WAYS_TO_BE_AWAY = (
    *(REFUSE, "reset", "hang", "drip_header", "drip_body", "huge"),
    *("unauthorized", "forbidden", "not_found", "too_many", "error_html", "error_empty"),
    *("error_json", "bad_gateway", "unavailable", "gateway_timeout", "redirect", "ok_html"),
    *("ok_false", "ok_list"),
)
BACK_SECONDS = 60  # until everything is normal once the platform is back
GRACE_SECONDS = 4  # validator_deny_grace_seconds of the test hosts
FLOOD_DOMAINS = 50_000
RATE, BURST = 20, 200  # the role's defaults
FIRST_MAILS = 800  # for as many domains, from so many senders at once
SENDERS = 8


def go_away(platform: StubClient, way: str) -> None:
    """Let the platform give no verdict on any domain."""
    if way == REFUSE:
        platform.listen(False)
    else:
        platform.default(way)


@pytest.fixture
def known_good(mx: Mx, platform: StubClient, domain: str) -> str:
    """A domain that the platform has confirmed, and says nothing about from now on."""
    platform.answer(domain, "allow")
    # The breaker may still be open from another test.
    eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code == 250)
    platform.forget_answer(domain)
    return domain


@contextlib.contextmanager
def outage(host: Host, platform: StubClient, known_good: str, way: str) -> Iterator[None]:
    """The platform is away, and the known-good domain's last confirmation no longer fresh."""
    go_away(platform, way)
    eventually(
        lambda: host.run("mx-validator check %s", known_good).stdout,
        lambda text: "known good" in text,
    )
    yield
    platform.reset()


def assert_normal(mx: Mx, platform: StubClient, domain: str) -> None:
    """Wait until domains that were never asked about get the platform's word."""
    platform.answer(f"ours.{domain}", "allow")
    for name, code in (("ours", 250), ("foreign", 554)):
        eventually(
            lambda name=name: mx.rcpt(f"a@{name}.{domain}").code,  # type: ignore[misc]
            lambda seen, code=code: seen == code,  # type: ignore[misc]
            BACK_SECONDS,
        )


def assert_outage(mx: Mx, known_good: str) -> None:
    assert mx.rcpt(f"a@{known_good}").code == 250
    reply = mx.rcpt(f"a@unknown.{known_good}")
    assert (reply.code, reply.text[:5]) == (451, "4.4.3")
    assert mx.rcpt(f"b@{known_good}").code == 250


@pytest.mark.parametrize("way", WAYS_TO_BE_AWAY)
def test_platform_away(host: Host, mx: Mx, platform: StubClient, known_good: str, way: str) -> None:
    with outage(host, platform, known_good, way):
        assert_outage(mx, known_good)
    assert_normal(mx, platform, known_good)


@pytest.mark.parametrize("way", [REFUSE, "hang", "error_html"])
def test_validator_killed_in_the_outage(
    host: Host, mx: Mx, platform: StubClient, known_good: str, way: str
) -> None:
    with outage(host, platform, known_good, way):
        host.check_output("pkill -9 -u mx-validator")
        assert_outage(mx, known_good)
    assert_normal(mx, platform, known_good)


@pytest.mark.parametrize("way", [REFUSE, "hang"])
def test_restarts_in_the_outage_while_mail_flows(
    host: Host, mailbox: Mx, platform: StubClient, known_good: str, way: str
) -> None:
    with outage(host, platform, known_good, way), Flow(mailbox, known_good) as flow:
        for _ in range(3):
            flow.wait_for(20)
            # Somebody waits for an answer about another domain meanwhile.
            host.run("timeout 1 mx-validator check slow.%s", known_good)
            host.check_output("supervisorctl restart mx-validator")
        flow.wait_for(20)
    assert set(flow.replies) == {250}
    mailbox.fetch_when(len(flow.accepted), 120)


def test_reboot_in_the_outage(host: Host, mx: Mx, platform: StubClient, known_good: str) -> None:
    with outage(host, platform, known_good, REFUSE):
        with rebooted(host):
            pass
        eventually(lambda: host.run("mx-validator status").rc, lambda code: code != 69)
        assert_outage(mx, known_good)
    assert_normal(mx, platform, known_good)


def test_known_good_is_not_for_other_domains(
    host: Host, mx: Mx, platform: StubClient, known_good: str
) -> None:
    with outage(host, platform, known_good, "bad_gateway"):
        for name in (f"sub.{known_good}", known_good.partition(".")[2], f"x{known_good}"):
            assert mx.rcpt(f"a@{name}").code == 451


def test_a_silent_platform_is_spared(
    host: Host, mx: Mx, platform: StubClient, known_good: str
) -> None:
    with outage(host, platform, known_good, "unavailable"):
        before = platform.count()
        for number in range(60):
            assert mx.rcpt(f"a@{number}.{known_good}").code == 451
        assert platform.count() - before < 30
        status = host.run("mx-validator status")
        assert status.rc == 75
        assert "platform answered 503; asked now and then only" in status.stdout
    assert_normal(mx, platform, known_good)
    assert host.run("mx-validator status").rc == 0


def test_a_refused_key_is_said_once(
    host: Host, mx: Mx, platform: StubClient, known_good: str
) -> None:
    before = host.file(LOG).size
    with outage(host, platform, known_good, "forbidden"):
        for number in range(20):
            assert mx.rcpt(f"a@{number}.{known_good}").code == 451
        status = host.run("mx-validator status")
        assert status.rc == 75
        assert "API key:     REFUSED" in status.stdout
    said = host.check_output(f"tail -c +{before + 1} {LOG}")
    assert said.count("ERROR API key refused (403): put the right one into") == 1
    assert_normal(mx, platform, known_good)


# -- one bad answer -----------------------------------------------------------


def asked_since(platform: StubClient, domain: str, count: int) -> None:
    """Wait until the platform was asked about a domain so often."""
    eventually(
        lambda: [request["domain"] for request in platform.requests()].count(domain),
        lambda seen: seen >= count,
    )


def test_a_good_domain_survives_a_bad_answer(mx: Mx, platform: StubClient, known_good: str) -> None:
    platform.forget_requests()
    platform.answer(known_good, "deny")
    while not platform.count():
        assert mx.rcpt(f"a@{known_good}").code == 250
    assert mx.rcpt(f"a@{known_good}").code == 250
    platform.answer(known_good, "allow")
    # Nobody sends: the daemon asks by itself until the matter is settled.
    asked_since(platform, known_good, 3)
    platform.answer(known_good, "deny")
    assert mx.rcpt(f"a@{known_good}").code == 250


def test_a_domain_that_the_platform_gave_up_is_refused_in_the_end(
    mx: Mx, platform: StubClient, known_good: str
) -> None:
    platform.forget_requests()
    platform.answer(known_good, "deny")
    reply = eventually(lambda: mx.rcpt(f"a@{known_good}"), lambda seen: seen.code != 250)
    assert str(reply) == f"554 5.7.1 <a@{known_good}>: Relay access denied"
    denied = [each["time"] for each in platform.requests() if each["domain"] == known_good]
    assert len(denied) > 3
    assert denied[-1] - denied[0] >= GRACE_SECONDS


# -- the store ----------------------------------------------------------------


def test_a_read_only_store_costs_a_log_line(
    host: Host, mx: Mx, platform: StubClient, known_good: str
) -> None:
    eventually(lambda: host.check_output("mx-validator domains"), lambda text: known_good in text)
    folder = STORE.rpartition("/")[0]
    before = host.file(LOG).size
    host.check_output("supervisorctl stop mx-validator")
    # Supervisor and its programs see mounts of their own.
    inside = f"nsenter --mount --target {host.check_output('cat /run/supervisord.pid')}"
    host.check_output(f"{inside} mount --bind {folder} {folder}")
    host.check_output(f"{inside} mount -o remount,ro,bind {folder}")
    try:
        host.check_output("supervisorctl start mx-validator")
        platform.answer(f"new.{known_good}", "allow")
        eventually(lambda: mx.rcpt(f"a@new.{known_good}").code, lambda code: code == 250)
        eventually(lambda: host.run("mx-validator status"), lambda done: done.rc == 75)
        with outage(host, platform, known_good, REFUSE):
            assert_outage(mx, known_good)
        log = host.check_output(f"tail -c +{before + 1} {LOG}")
        assert log.count("known-good domains on disk cannot be written") == 1
    finally:
        host.check_output(f"{inside} umount --lazy {folder}")
    eventually(
        lambda: host.check_output("mx-validator domains"),
        lambda text: f"new.{known_good}" in text,
    )


def test_a_damaged_store_costs_a_log_line(
    host: Host, mx: Mx, platform: StubClient, known_good: str
) -> None:
    host.check_output("supervisorctl stop mx-validator")
    host.check_output(f"rm -f {STORE}-wal {STORE}-shm && head -c 100000 /dev/urandom > {STORE}")
    host.check_output("supervisorctl start mx-validator")
    platform.answer(known_good, "allow")
    eventually(lambda: mx.rcpt(f"a@{known_good}").code, lambda code: code == 250)
    assert host.file(f"{STORE}.damaged").size == 100_000
    eventually(lambda: host.check_output("mx-validator domains"), lambda text: known_good in text)
    host.check_output(f"rm {STORE}.damaged")


# -- seen from outside --------------------------------------------------------


def fetched(host: Host, path: str) -> str:
    script = (
        "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
    )
    return str(host.check_output("python3 -c %s %s", script, f"http://127.0.0.1:9854{path}"))


def test_metrics(host: Host, mx: Mx, known_good: str) -> None:
    mx.rcpt(f"a@foreign.{known_good}")
    metrics = fetched(host, "/metrics")
    assert re.search(r'(?m)^mx_validator_platform_answers_total\{outcome="deny"\} [1-9]', metrics)
    assert re.search(r"(?m)^mx_validator_known_good_domains [1-9]", metrics)
    assert ".example" not in metrics
    assert fetched(host, "/healthz").strip() == "ok"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((mx.address, 9854), timeout=10)


def test_domains_and_forget(host: Host, mx: Mx, platform: StubClient, known_good: str) -> None:
    lines = eventually(
        lambda: host.check_output("mx-validator domains"), lambda text: known_good in text
    )
    assert re.search(rf"(?m)^20\d\d-\S+Z {re.escape(known_good)}$", lines)
    assert host.run("mx-validator forget %s", known_good).rc == 0
    eventually(
        lambda: host.check_output("mx-validator domains"), lambda text: known_good not in text
    )
    platform.forget_requests()
    assert mx.rcpt(f"a@{known_good}").code == 554
    assert platform.requests()[-1]["domain"] == known_good


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep the flood of another host out: both share this machine's processors."""
    with (Path(tempfile.gettempdir()) / "oempro-mx-flood.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_flood(host: Host, platform: StubClient, known_good: str) -> None:
    script = Path(__file__).with_name("flood.py").read_text()
    platform.answer(known_good, "allow")
    suffix = f"flood.{known_good}"
    with alone():
        done = host.check_output(
            "python3 -c %s %s %s %s", script, known_good, suffix, str(FLOOD_DOMAINS)
        )
    figures = json.loads(done)
    print(done)
    assert sum(figures["replies"].values()) == FLOOD_DOMAINS
    assert set(figures["replies"]) == {"action=DUNNO", "action=451"}
    assert figures["flooded_99"] <= 2 * figures["quiet_99"] + 2
    asked = [each for each in platform.requests() if each["domain"].endswith(suffix)]
    seconds = figures["ended"] - figures["began"]
    assert BURST <= len(asked) <= BURST + RATE * seconds


# -- the beginning ------------------------------------------------------------


@pytest.mark.parametrize("list_mode", ["allow", "not_found"])
def test_a_host_that_begins_defers_no_domain_of_the_platform(
    host: Host, mx: Mx, platform: StubClient, domain: str, list_mode: str
) -> None:
    for number in range(FIRST_MAILS):
        platform.answer(f"{number}.{domain}", "allow", delay_ms=50)
    platform.answer_list(list_mode)
    host.check_output("supervisorctl stop mx-validator")
    host.check_output(f"rm -f {STORE}*")
    host.check_output("supervisorctl start mx-validator")
    shares = [range(first, FIRST_MAILS, SENDERS) for first in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as pool:
        codes = pool.map(lambda share: first_mails(mx, domain, share), shares)
    assert sum(codes, Counter()) == {250: FIRST_MAILS}
    assert len(platform.list_requests()) == 1


def first_mails(mx: Mx, domain: str, numbers: range) -> Counter[int]:
    """Name a recipient at each of the domains, in as few transactions as there may be."""
    codes: Counter[int] = Counter()
    with mx.smtp() as session:
        for position, number in enumerate(numbers):
            if position % 50 == 0:
                session.rset()
                session.command("MAIL FROM:<>")
            codes[session.command(f"RCPT TO:<a@{number}.{domain}>").code] += 1
    return codes
