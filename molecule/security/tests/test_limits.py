"""Whoever holds or opens too many connections does not keep others out."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from platform_stub import StubClient
from probes import Mx, eventually, unverified

IDLE = 500
SLOW = 100
SLOW_SECONDS = 2.0  # between two bytes
GREETING_SECONDS = 60
MAILS = 20


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
            reply = mailbox.send(f"n{number}@{domain}", b"Subject: x\r\n\r\nx\r\n")
            assert reply.code == 250, reply
        eventually(mailbox.count, lambda seen: seen == MAILS)


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
