"""Real collectors take each message once, as it is, and leave nothing behind."""

from __future__ import annotations

import imaplib
import time
from collections.abc import Callable

import pytest

from collecting import Collector
from platform_stub import StubClient
from probes import Mx

PHP_IMAP, PHP_POP3 = Collector("php", "imap"), Collector("php", "pop3")
COLLECTORS = (
    *(PHP_IMAP, PHP_POP3),
    *(Collector("fetchmail", "imap"), Collector("fetchmail", "pop3")),
    *(Collector("getmail", "imap"), Collector("getmail", "pop3")),
    Collector("mbsync", "imap"),
)
HEADER = b"From: joe@isp.example\r\nSubject: x\r\nMessage-ID: <%d@isp.example>\r\n\r\n"
BODIES = (
    b"x\r\n",
    b"",
    b".\r\n..\r\n.x\r\n",
    b"From here\r\n>From there\r\n",
    "Grüße\r\n".encode(),
    b"\xff\xfe\x80\r\n",
    b"x" * 998 + b"\r\n",
    (b"x" * 76 + b"\r\n") * 30_000,
)
SENDER = "Joe.Q=x@isp.example"
MANY = 50
LARGE = (b"x" * 76 + b"\r\n") * 1300  # so that many take a while


@pytest.fixture
def fill(mailbox: Mx, platform: StubClient, domain: str) -> Callable[..., dict[str, bytes]]:
    """Return a call that puts messages into the mailbox, and returns them by recipient."""
    platform.answer(domain, "allow")

    def send(bodies: tuple[bytes, ...] = BODIES) -> dict[str, bytes]:
        sent = {}
        with mailbox.smtp() as session:
            for number, body in enumerate(bodies):
                recipient = f"Bounce+{number}=Joe=isp.example@{domain}"
                sent[recipient] = HEADER % number + body
                session.command(f"MAIL FROM:<{SENDER}>")
                assert session.command(f"RCPT TO:<{recipient}>").code == 250
                assert session.message(sent[recipient]).code == 250
        mailbox.fetch_when(len(sent))
        return sent

    return send


@pytest.mark.parametrize("collector", COLLECTORS, ids=lambda c: f"{c.program}-{c.protocol}")
def test_each_message_once_and_as_it_is(
    mailbox: Mx, fill: Callable[..., dict[str, bytes]], collector: Collector
) -> None:
    sent = fill()
    found = collector.start(mailbox).messages()
    assert sorted(message.original_to for message in found) == sorted(sent)
    for message in found:
        assert message.return_path == f"<{SENDER}>"
        assert message.raw.endswith(sent[message.original_to]), message.original_to
    assert mailbox.count() == 0


@pytest.mark.parametrize("collector", COLLECTORS, ids=lambda c: f"{c.program}-{c.protocol}")
def test_collector_that_is_killed(
    mailbox: Mx, fill: Callable[..., dict[str, bytes]], collector: Collector
) -> None:
    """What it had not deleted is there for the next one; what it had deleted, it had stored."""
    sent = fill((LARGE,) * 4 * MANY)
    killed = collector.start(mailbox)
    killed.kill()
    whole = [message for message in killed.stored() if message.raw.endswith(LARGE)]
    found = [*whole, *PHP_IMAP.start(mailbox).messages()]
    assert {message.original_to for message in found} == set(sent)
    assert mailbox.count() == 0


def test_two_pop3_sessions_at_once_share_nothing(
    mailbox: Mx, fill: Callable[..., dict[str, bytes]]
) -> None:
    """RFC 1939 3: the maildrop is locked for a session."""
    sent = fill((b"x\r\n",) * MANY)
    runs = [PHP_POP3.start(mailbox) for _ in range(2)]
    found = [message.original_to for run in runs for message in run.messages()]
    assert sorted(found) == sorted(sent)


def test_a_wrong_password_slows_nobody_else_down(mailbox: Mx) -> None:
    """From the same address. The firewall lets in only those that the operator has named."""
    began = time.monotonic()
    for number in range(3):
        run = PHP_POP3.start(mailbox, password=f"outdated-{number}")
        assert "Authentication failed" in run.end()
    refused = (time.monotonic() - began) / 3
    began = time.monotonic()
    assert PHP_POP3.start(mailbox).messages() == []
    assert time.monotonic() - began < refused / 2


def test_there_is_one_folder(mailbox: Mx, fill: Callable[..., dict[str, bytes]]) -> None:
    """What a client moves elsewhere would be seen by nobody."""
    fill((b"x\r\n",))
    with mailbox.imap() as session:
        for refused in (
            session.create("Trash"),
            session.create("Archive/2026"),
            session.rename("INBOX", "Old"),
            session.copy("1", "Trash"),
            session.append("Trash", "", imaplib.Time2Internaldate(0), b"Subject: x\r\n\r\n"),
        ):
            assert refused[0] == "NO"
        assert session.list()[1] == [rb'(\HasNoChildren) "/" INBOX']
    assert mailbox.count() == 1
