"""What a sender's mail server, the platform and an operator would do to an MX, as plain calls.

Senders speak SMTP on port 25, the platform reads the mailbox over IMAPS or POP3S. Certificates are
not verified here: the test hosts' are self-signed.
"""

from __future__ import annotations

import imaplib
import poplib
import re
import smtplib
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

TIMEOUT_SECONDS = 60  # of one SMTP, IMAP or POP3 command
DELIVERY_SECONDS = 60  # until an accepted message is in the mailbox
POLL_SECONDS = 0.1
poplib._MAXLINE = 2 * 1024 * 1024  # type: ignore[attr-defined]  # real mail has longer lines than Python's 2,048 bytes
# Ends the headers that the MX itself puts on top: the Received header of its smtpd.
OWN_HEADERS_END = re.compile(rb"\r\nReceived: from [^\r]*\r\n(?:[ \t][^\r]*\r\n)+", re.S)

T = TypeVar("T")


def eventually(
    look: Callable[[], T], enough: Callable[[T], object] = bool, seconds: float = DELIVERY_SECONDS
) -> T:
    """Look again and again until it is enough, and return what was seen last.

    Raises:
        AssertionError: it was not enough by the deadline; the message has what was seen.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if enough(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; the last thing seen was: {seen!r:.2000}")
        time.sleep(POLL_SECONDS)


def unverified() -> ssl.SSLContext:
    """TLS as most mail servers speak it: whatever the certificate says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Reply:
    """One SMTP reply."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Smtp(smtplib.SMTP):
    """An SMTP session whose commands give a Reply and are sent as they are written."""

    def command(self, line: str) -> Reply:
        code, text = self.docmd(line)
        return Reply(code, text.decode(errors="replace"))

    def message(self, data: bytes) -> Reply:
        """Send DATA and a message with CRLF line ends."""
        code, text = self.data(data)
        return Reply(code, text.decode(errors="replace"))


@dataclass(frozen=True)
class Message:
    """A message as it was fetched from the mailbox."""

    raw: bytes

    @property
    def return_path(self) -> str:
        """The envelope sender, in angle brackets."""
        return self._first(b"Return-Path")

    @property
    def original_to(self) -> str:
        """The envelope recipient."""
        return self._first(b"X-Original-To")

    @property
    def sent(self) -> bytes:
        """What is below the MX's own headers."""
        end = OWN_HEADERS_END.search(self.raw, self.raw.index(b"\r\nX-Original-To: "))
        assert end, f"no Received header of the MX in: {self.raw[:2000]!r}"
        return self.raw[end.end() :]

    def _first(self, name: bytes) -> str:
        found = re.search(rb"^" + name + rb": ([^\r]*)\r\n", self.raw, re.M)
        assert found, f"no {name.decode()} in: {self.raw[:2000]!r}"
        return found[1].decode()


@dataclass(frozen=True)
class Mx:
    """An MX as it is seen from outside."""

    address: str
    hostname: str
    username: str
    password: str

    # -- the sender's side --------------------------------------------------

    @contextmanager
    def smtp(
        self, greet: str = "sender.example", timeout: float = TIMEOUT_SECONDS
    ) -> Iterator[Smtp]:
        """Connect to port 25 and say EHLO."""
        with Smtp(self.address, 25, timeout=timeout) as session:
            session.ehlo(greet)
            yield session

    def size_offered(self) -> int:
        """Return the largest message that EHLO says is taken, in bytes."""
        with self.smtp() as session:
            return int(session.esmtp_features["size"])

    def rcpt(self, recipient: str, sender: str = "") -> Reply:
        """Return the reply to one recipient, without sending a message."""
        with self.smtp() as session:
            session.command(f"MAIL FROM:<{sender}>")
            return session.command(f"RCPT TO:<{recipient}>")

    def send(self, recipient: str, data: bytes, sender: str = "") -> Reply:
        """Send one message; return the refusal of the recipient, or the reply to the message."""
        with self.smtp() as session:
            session.command(f"MAIL FROM:<{sender}>")
            reply = session.command(f"RCPT TO:<{recipient}>")
            return reply if reply.code != 250 else session.message(data)

    # -- the platform's side ------------------------------------------------

    @contextmanager
    def imap(self, timeout: float = TIMEOUT_SECONDS) -> Iterator[imaplib.IMAP4_SSL]:
        """Log in over IMAPS and open the inbox."""
        with imaplib.IMAP4_SSL(self.address, ssl_context=unverified(), timeout=timeout) as session:
            session.login(self.username, self.password)
            session.select("INBOX")
            yield session

    def count(self) -> int:
        """Return how many messages are in the mailbox."""
        with self.imap() as session:
            return len(session.uid("SEARCH", "ALL")[1][0].split())

    def fetch(self) -> list[Message]:
        """Fetch every message over IMAPS."""
        with self.imap() as session:
            if not session.uid("SEARCH", "ALL")[1][0]:
                return []
            return [
                Message(part[1])
                for part in session.uid("FETCH", "1:*", "(BODY.PEEK[])")[1]
                if isinstance(part, tuple)
            ]

    def fetch_when(self, count: int, seconds: float = DELIVERY_SECONDS) -> list[Message]:
        """Wait until the mailbox has so many messages, and fetch them."""
        eventually(self.count, lambda seen: seen >= count, seconds)
        return self.fetch()

    def empty(self) -> None:
        """Delete every message."""
        with self.imap() as session:
            session.store("1:*", "+FLAGS.SILENT", r"(\Deleted)") if self.count() else None
            session.expunge()

    def fetch_pop3(self) -> list[Message]:
        """Fetch every message over POP3S, and leave it there."""
        session = poplib.POP3_SSL(self.address, context=unverified(), timeout=TIMEOUT_SECONDS)
        try:
            session.user(self.username)
            session.pass_(self.password)
            found = []
            for number in range(1, session.stat()[0] + 1):
                lines: list[bytes] = session.retr(number)[1]
                found.append(Message(b"".join(line + b"\r\n" for line in lines)))
            return found
        finally:
            session.quit()
