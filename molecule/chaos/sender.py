"""Mail servers that send to the MX, and do as RFC 5321 says: what is not taken is tried again."""

from __future__ import annotations

import base64
import random
import re
import smtplib
import threading
import time
from collections import deque
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from ledger import Ledger
from probes import Mx, Reply, Smtp, unverified

SENDERS = 8
TIMEOUT_SECONDS = 12  # far less than real ones wait, so that a cut network breaks connections
PAUSE_SECONDS = 2  # at most, between two messages of a sender
RETRY_SECONDS = 1.0
DAWDLE_SECONDS = 1.0
DRAIN_SECONDS = 120  # until everything is accepted, when nothing breaks any more
PENDING = 20  # a sender with so many messages to try again begins no new ones
CHUNK = 65536
DOMAINS = 40
# Sizes of messages in bytes, and how often out of a thousand.
SIZES = ((1_000, 600), (4_000, 300), (60_000, 80), (1_000_000, 17), (5_000_000, 3))
MANY = 20  # recipients, at most, of a message of at most MANY_SIZE
MANY_SIZE = 4_000


@dataclass
class Mail:
    """One message and those of its recipients who do not have it yet."""

    sender: str
    recipients: list[str]
    data: bytes
    due: float = 0


def authorised(recipient: str) -> bool:
    """Tell whether the platform confirms a recipient's domain."""
    return "@foreign" not in recipient


def foreign_domains(suffix: str) -> list[str]:
    return [f"foreign{number}.{suffix}" for number in range(5)]


class Sender(threading.Thread):
    """One mail server with one connection at a time; all it does follows from its seed."""

    def __init__(self, mx: Mx, ledger: Ledger, suffix: str, seed: int, number: int) -> None:
        super().__init__(daemon=True)
        self._mx = mx
        self._ledger = ledger
        self._suffix = suffix
        self._random = random.Random(f"{seed} {number}")
        self._name = f"{seed}-{number}"
        self._count = 0
        self._ending = threading.Event()
        self.pending: deque[Mail] = deque()
        self.in_data = False
        self.dawdles = False

    def stop(self) -> None:
        """Begin nothing new; the thread ends when nothing is left to try again."""
        self._ending.set()

    def run(self) -> None:
        while not self._ending.is_set() or self.pending:
            if self.pending and self.pending[0].due <= time.monotonic():
                batch = [self.pending.popleft()]
            elif len(self.pending) < PENDING and not self._ending.is_set():
                batch = [self._mail() for _ in range(self._random.choice((1, 1, 1, 3)))]
            else:
                time.sleep(RETRY_SECONDS / 10)
                continue
            self._session(batch)
            for mail in batch:
                if mail.recipients:
                    mail.due = time.monotonic() + RETRY_SECONDS
                    self.pending.append(mail)
            self._ending.wait(self._random.uniform(0, PAUSE_SECONDS))

    def _mail(self) -> Mail:
        self._count += 1
        sizes, weights = zip(*SIZES, strict=True)
        size = self._random.choices(sizes, weights)[0]
        many = size <= MANY_SIZE and self._random.random() < 0.1
        recipients = []
        for number in range(self._random.randint(2, MANY) if many else 1):
            foreign = self._random.random() < 0.03
            domain = (
                self._random.choice(foreign_domains(self._suffix))
                if foreign
                else f"d{self._random.randrange(DOMAINS)}.{self._suffix}"
            )
            recipients.append(
                f"Bounce+{self._name}-{self._count}-{number}=joe=isp.example@{domain}"
            )
        sender = self._random.choice(("", "", "fbl@isp.example", "Joe.Q=x@isp.example"))
        body = base64.encodebytes(self._random.randbytes(size * 3 // 4)).replace(b"\n", b"\r\n")
        head = f"From: <{sender}>\r\nSubject: {self._name}-{self._count}\r\n\r\n.\r\n..dots\r\n"
        data = head.encode() + body
        ours = [each for each in recipients if authorised(each)]
        self._ledger.sending(ours, sha256(data).hexdigest())
        return Mail(sender, recipients, data)

    def _session(self, batch: list[Mail]) -> None:
        """Send messages over one connection."""
        try:
            with self._mx.smtp(timeout=TIMEOUT_SECONDS) as session:
                if self._random.random() < 0.5:
                    session.starttls(context=unverified())
                    session.ehlo()
                for mail in batch:
                    self._transaction(session, mail)
        except (OSError, smtplib.SMTPException):
            self._ledger.note("broken", self._name)

    def _transaction(self, session: Smtp, mail: Mail) -> None:
        """Send one message to all who do not have it."""
        reply = session.command(f"MAIL FROM:<{mail.sender}>")
        if reply.code != 250:
            self._settle(mail, mail.recipients, reply)
            return
        taken = []
        for recipient in list(mail.recipients):
            reply = session.command(f"RCPT TO:<{recipient}>")
            if reply.code == 250:
                taken.append(recipient)
            else:
                self._settle(mail, [recipient], reply)
        if taken:
            self._settle(mail, taken, self._content(session, mail, taken))
        else:
            session.command("RSET")

    def _content(self, session: Smtp, mail: Mail, taken: list[str]) -> Reply:
        """Send DATA and the message; without a last reply, nobody knows whether it is taken."""
        reply = session.command("DATA")
        if reply.code != 354:
            return reply
        content = re.sub(rb"(?m)^\.", b"..", mail.data)
        self.in_data = True
        try:
            for begin in range(0, len(content), CHUNK):
                session.send(content[begin : begin + CHUNK])
            if self.dawdles:
                time.sleep(DAWDLE_SECONDS)
        finally:
            self.in_data = False
        try:
            return session.command(".")
        except (OSError, smtplib.SMTPException):
            for recipient in taken:
                self._ledger.note("doubtful", recipient)
            raise

    def _settle(self, mail: Mail, recipients: list[str], reply: Reply) -> None:
        """Note a reply; those who got a 4xx stay with the message."""
        for recipient in list(recipients):
            if reply.code == 250:
                kind = "accepted"
            elif reply.code < 500:
                kind = "deferred"
            else:
                kind = "refused" if authorised(recipient) else "denied"
            self._ledger.note(kind, recipient, str(reply))
            if kind != "deferred":
                mail.recipients.remove(recipient)


class Senders:
    """All mail servers that send at the same time."""

    def __init__(self, mx: Mx, ledger: Ledger, suffix: str, seed: int) -> None:
        self._threads = [Sender(mx, ledger, suffix, seed, number) for number in range(SENDERS)]

    @property
    def in_data(self) -> int:
        """How many are in the middle of a message."""
        return sum(thread.in_data for thread in self._threads)

    def dawdle(self, wanted: bool) -> None:
        """Let all of them wait before the end of a message, or no longer."""
        for thread in self._threads:
            thread.dawdles = wanted

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.stop()
        deadline = time.monotonic() + DRAIN_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
            assert not thread.is_alive(), f"{[m.recipients for m in thread.pending]} never accepted"
