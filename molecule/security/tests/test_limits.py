"""Whoever holds or opens too many connections does not keep others out."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from hostile import CONNECTIONS, NOOP, Attack
from platform_stub import StubClient
from probes import Mx, eventually, unverified

IDLE = 500
SLOW = 100
SLOW_SECONDS = 2.0  # between two bytes
GREETING_SECONDS = 60
MAILS = 20
HOSTILE = 6  # addresses, which with 50 connections each have all 300 processes
HONEST_MAILS = 3
MESSAGE = b"Subject: x\r\n\r\nx\r\n"
STOP = "systemctl stop postfix dovecot supervisor"
START = "systemctl start supervisor dovecot postfix"


def connect(mx: Mx, source: str) -> tuple[socket.socket, bytes]:
    """Connect from the address; return the connection and the greeting."""
    connection = socket.create_connection(
        (mx.address, 25), timeout=GREETING_SECONDS, source_address=(source, 0)
    )
    greeting = b""
    with contextlib.suppress(OSError):
        greeting = connection.recv(512)
    return connection, greeting


def dribble(connections: list[socket.socket], stop: threading.Event) -> None:
    """Send a command a byte at a time, and never its end."""
    while not stop.wait(SLOW_SECONDS):
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(b"x")


@pytest.fixture
def stress(host: Host) -> Iterator[None]:
    """End the stress that a test brings Postfix under: it would last for 1,000 seconds more."""
    yield
    host.check_output("systemctl restart postfix")


def test_idle_and_slow_senders_do_not_keep_mail_out(
    mailbox: Mx, platform: StubClient, domain: str, outsiders: list[str]
) -> None:
    platform.answer(domain, "allow")
    stop = threading.Event()
    with contextlib.ExitStack() as held:
        idle = [connect(mailbox, outsiders[0]) for _ in range(IDLE)]
        slow = [connect(mailbox, outsiders[1 + n % 4]) for n in range(SLOW)]
        for connection, _ in [*idle, *slow]:
            held.enter_context(connection)
        # The address with 500 has its 50; those of the slow ones are within the limit.
        assert sum(greeting.startswith(b"220 ") for _, greeting in idle) == 50
        refused = {greeting for _, greeting in idle if not greeting.startswith(b"220 ")}
        assert all(b"421 4.7.0" in greeting for greeting in refused)
        assert all(greeting.startswith(b"220 ") for _, greeting in slow)
        thread = threading.Thread(target=dribble, args=([c for c, _ in slow], stop))
        thread.start()
        held.callback(thread.join)
        held.callback(stop.set)
        for number in range(MAILS):
            reply = mailbox.send(f"n{number}@{domain}", MESSAGE)
            assert reply.code == 250, reply
        eventually(mailbox.count, lambda seen: seen == MAILS)


@pytest.mark.usefixtures("stress")
def test_who_holds_every_process_does_not_hold_it_for_long(
    host: Host,
    mailbox: Mx,
    platform: StubClient,
    domain: str,
    site: Callable[..., Any],
    outsiders: list[str],
) -> None:
    """Idle connections from many addresses; the first ones end sooner than they would."""
    platform.answer(domain, "allow")
    site("--tags=postfix", postfix_smtpd_processes=10, postfix_client_connections=5)
    host.check_output("postconf -e 'smtpd_timeout=${stress?{10}:{15}}s' && postfix reload")
    stop = threading.Event()
    greeted = []

    def hold(source: str) -> None:
        while not stop.is_set():
            connection, greeting = connect(mailbox, source)
            with connection, contextlib.suppress(OSError):
                greeted.append(greeting)
                while connection.recv(512):
                    pass

    holders = [threading.Thread(target=hold, args=(outsiders[n % 4],)) for n in range(20)]
    for holder in holders:
        holder.start()
    eventually(lambda: len(greeted) >= 10)
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    stop.set()
    site("--tags=postfix")  # which ends their sessions
    for holder in holders:
        holder.join()
    eventually(mailbox.count, lambda seen: seen == 1)


@pytest.mark.usefixtures("stress")
def test_noops_on_every_process_do_not_keep_mail_out(
    mailbox: Mx,
    platform: StubClient,
    domain: str,
    site: Callable[..., Any],
    outsiders: list[str],
) -> None:
    """Six addresses that stay within their limit, and never say anything that is an error."""
    platform.answer(domain, "allow")
    sources = outsiders[:HOSTILE]
    with Attack(mailbox.address, dict.fromkeys(sources, NOOP)) as attack:
        eventually(lambda: attack.held >= HOSTILE * CONNECTIONS)
        for number in range(HONEST_MAILS):
            # It gives up after a minute; real senders wait for a greeting five times as long.
            assert mailbox.send(f"n{number}@{domain}", MESSAGE).code == 250
        site("--tags=postfix_run")  # nor the operator who wants to do something about it
        assert attack.held > (HOSTILE - 1) * CONNECTIONS  # it still goes on
    eventually(mailbox.count, lambda seen: seen == HONEST_MAILS)


def test_flood_of_connections_is_told_to_come_back(
    mx: Mx, site: Callable[..., Any], outsiders: list[str]
) -> None:
    site("--tags=postfix", postfix_client_connections_per_minute=30)
    greetings = []
    for _ in range(40):
        connection, greeting = connect(mx, outsiders[5])
        connection.close()
        greetings.append(greeting[:9])
    assert greetings.count(b"421 4.7.0") >= 9  # a new minute may have begun
    with mx.smtp() as session:
        assert session.command("NOOP").code == 250
    site("--tags=postfix")


def test_starttls_injection_is_refused(mx: Mx) -> None:
    """A command that came in clear text must not be taken as one that came encrypted."""
    with mx.smtp() as session:
        session.send(b"STARTTLS\r\nMAIL FROM:<injected@x.example>\r\n")
        assert session.getreply()[0] == 220
        assert session.sock
        session.sock = unverified().wrap_socket(session.sock)
        session.file = None
        session.ehlo("sender.example")
        assert session.command("RCPT TO:<a@x.example>").code == 503


@pytest.fixture
def few_inodes(host: Host) -> Iterator[Callable[[int], None]]:
    """Put the mail queue on a small file system; return a call that sets how many inodes it has."""
    host.check_output(f"{STOP}; mount -t tmpfs -o nr_inodes=20000,mode=0755 tmpfs /mnt")
    host.check_output("cp -a /var/spool/postfix/. /mnt && mount --bind /mnt /var/spool/postfix")
    host.check_output(f"umount /mnt; cd /var/spool/postfix && seq 1000 | xargs touch; {START}")
    yield lambda number: host.check_output(
        f"mount -o remount,nr_inodes={number} /var/spool/postfix"
    )
    host.check_output(f"{STOP}; umount /var/spool/postfix; {START}")


def test_without_inodes_mail_is_told_to_come_back(
    mailbox: Mx, platform: StubClient, domain: str, few_inodes: Callable[[int], None]
) -> None:
    """Postfix does not look at them: without one its cleanup would let the sender hang."""
    platform.answer(domain, "allow")
    for inodes, code in ((20000, 250), (1100, 452), (20000, 250)):
        few_inodes(inodes)
        eventually(lambda: mailbox.rcpt(f"a@{domain}").code == code)  # noqa: B023 - at once
        assert mailbox.rcpt(f"a@foreign.{domain}").code == 554
    eventually(lambda: mailbox.send(f"a@{domain}", MESSAGE).code, lambda seen: seen == 250)
    eventually(mailbox.count, lambda seen: seen == 1)
