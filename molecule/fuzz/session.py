"""Whole SMTP sessions made at random: a session is a function of the seed, its number and the host.

There is no I/O here: dialogue.py sends a session; replies.py and deliveries.py judge the outcome.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from addresses import Address, Addresses
from contents import LIMIT, Content, Contents, Data

MANY = 101  # recipients; the server takes 100 in one transaction (smtpd_recipient_limit)
ERRORS = 8  # refused commands of a session, at most: from the 10th the server answers slowly


@dataclass(frozen=True)
class Parameter:
    """A parameter of MAIL or RCPT, and the replies that refuse it."""

    wire: bytes
    refusals: tuple[str, ...] = ()

    @property
    def size(self) -> bool:
        """Whether it says how large the message is."""
        return self.wire.upper().startswith(b"SIZE=")


@dataclass(frozen=True)
class Greet:
    """EHLO or HELO."""

    line: bytes
    extended: bool


@dataclass(frozen=True)
class StartTls:
    """STARTTLS and the handshake; the sender has to greet again."""

    line = b"STARTTLS"


@dataclass(frozen=True)
class Envelope:
    """MAIL or RCPT."""

    address: Address
    parameters: tuple[Parameter, ...] = ()
    verb = b""

    @property
    def line(self) -> bytes:
        return b" ".join([self.verb + self.address.wire, *(each.wire for each in self.parameters)])

    @property
    def refusals(self) -> tuple[str, ...]:
        """Replies that refuse a parameter: one of them has to come, if there are any."""
        return tuple(pattern for each in self.parameters for pattern in each.refusals)


class Mail(Envelope):
    verb = b"MAIL FROM:"

    @property
    def utf8(self) -> bool:
        """Whether addresses outside ASCII are declared."""
        return any(each.wire == b"SMTPUTF8" for each in self.parameters)


class Rcpt(Envelope):
    verb = b"RCPT TO:"


@dataclass(frozen=True)
class Send:
    """A message, by DATA or BDAT; `early`: without waiting for the 354, which no sender may."""

    content: Content
    early: bool = False

    def commands(self) -> Iterator[bytes]:
        """The commands, each with the content that follows it at once."""
        if isinstance(self.content, Data):
            yield b"DATA\r\n"
            return
        *first, last = self.content.chunks
        for chunk in first:
            yield b"BDAT %d\r\n" % len(chunk) + chunk
        yield b"BDAT %d LAST\r\n" % len(last) + last


@dataclass(frozen=True)
class Other:
    """A command that carries no mail, and the replies that are right."""

    line: bytes
    replies: tuple[str, ...]


Step = Greet | StartTls | Mail | Rcpt | Send | Other


@dataclass(frozen=True)
class Session:
    """What one sender does over one connection."""

    seed: int
    number: int
    steps: tuple[Step, ...]
    pipelined: bool = False  # MAIL, RCPT and DATA in one go
    stubborn: bool = False  # goes on with a transaction whose sender was refused
    impatient: bool = False  # talks before the server's greeting
    pieces: int | None = None  # seed of the sizes in which it is written; None: as it comes
    cut: float | None = None  # the share of the last step's bytes after which the connection breaks

    @property
    def token(self) -> str:
        """What the sender calls itself; so the Received header tells whose a message is."""
        return token(self.seed, self.number)


def token(seed: int, number: int) -> str:
    return f"s{seed}-{number}.fuzz"


NOT_OFFERED = ("50[0-9] ", "55[0-9] 5")
NO_COMMAND = ("500 5.5.2 ", "221 2.7.0 ")  # what looks like another protocol ends the session
OTHERS = (
    Other(b"NOOP", ("250 ",)),
    Other(b"NOOP \x01\x7f ignored", ("250 ", "500 5.5.2 ")),
    Other(b"VRFY postmaster", NOT_OFFERED),
    Other(b"EXPN staff", NOT_OFFERED),
    Other(b"ETRN fuzz.example", NOT_OFFERED),
    Other(b"AUTH PLAIN AGEAYg==", NOT_OFFERED),
    Other(b"XYZZY", NO_COMMAND),
    Other(b"", NO_COMMAND),
    Other(b"\x00", NO_COMMAND),
    Other(b"\xff\xfe\x01", NO_COMMAND),
    Other(b"x" * 4000, NO_COMMAND),  # Postfix 3.10 hangs up at twice line_length_limit
    Other(b"HELP", ("214 ", *NOT_OFFERED)),
    Other(b"RSET now", ("501 5.5.4 ",)),
    Other(b"XCLIENT ADDR=127.0.0.1", NOT_OFFERED),
    Other(b"XFORWARD NAME=localhost", NOT_OFFERED),
)
RSET = Other(b"RSET", ("250 ",))
QUIT = Other(b"QUIT", ("221 ",))

DSN_OFF = ("501 5.7.1 ",)
UNKNOWN = ("555 5.5.4 ",)
MAIL_PARAMETERS = (
    (Parameter(b"BODY=8BITMIME"), 30),
    (Parameter(b"BODY=7BIT"), 10),
    (Parameter(b"SIZE=0"), 5),
    (Parameter(b"SIZE=1234"), 20),
    (Parameter(b"size=%d" % LIMIT), 3),
    (Parameter(b"SMTPUTF8"), 10),
    (Parameter(b"SIZE=%d" % (LIMIT + 1), ("552 5.3.4 ",)), 2),
    (Parameter(b"SIZE=99999999999999999999", ("552 5.3.4 ", "501 5.5.4 ")), 1),
    (Parameter(b"SIZE=x", ("501 5.5.4 ",)), 1),
    (Parameter(b"RET=HDRS", DSN_OFF), 2),
    (Parameter(b"ENVID=x", DSN_OFF), 2),
    (Parameter(b"BODY=BINARYMIME", UNKNOWN), 1),
    (Parameter(b"X-UNKNOWN=1", UNKNOWN), 1),
)
RCPT_PARAMETERS = (
    Parameter(b"NOTIFY=NEVER", DSN_OFF),
    Parameter(b"ORCPT=rfc822;x@isp.example", DSN_OFF),
    Parameter(b"X-UNKNOWN", UNKNOWN),
)


def make(seed: int, number: int, hostname: str) -> Session:
    """Make one session."""
    return Maker(seed, number, hostname).session()


class Maker:
    """Makes one session."""

    def __init__(self, seed: int, number: int, hostname: str) -> None:
        self._random = random.Random(f"{seed} {number}")
        self._seed = seed
        self._number = number
        self._addresses = Addresses(self._random, hostname)
        self._contents = Contents(self._random)

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def session(self) -> Session:
        extended = self._often(0.9)
        steps: list[Step] = [self._greet(extended)]
        if extended and self._often(0.15):
            steps += [StartTls(), self._greet(extended)]
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            steps += self._transaction(extended)
        cut = self._random.choice((0.0, 0.5, 0.99, 1.0)) if self._often(0.08) else None
        if cut is None and isinstance(steps[-1], Send) and self._often(0.03):
            steps[-1] = Send(steps[-1].content, early=True)
        elif cut is None:
            steps.append(QUIT)
        return Session(
            *(self._seed, self._number, tuple(steps)),
            pipelined=self._often(0.4 if extended else 0.05),
            stubborn=self._often(0.2),
            impatient=self._often(0.01),
            pieces=self._random.randrange(1000) if self._often(0.3) else None,
            cut=cut,
        )

    def _greet(self, extended: bool) -> Greet:
        name = token(self._seed, self._number)
        form = self._random.choice(("{}", "{}", "{}.example", "[{}]", "{}_x.example.", "{} junk"))
        return Greet((("EHLO " if extended else "HELO ") + form.format(name)).encode(), extended)

    def _transaction(self, extended: bool) -> list[Step]:
        steps: list[Step] = []
        while self._often(0.08):
            steps.append(self._random.choice(OTHERS))
        sender = self._addresses.sender()
        steps.append(Mail(sender, self._mail_parameters(extended, sender)))
        recipients = self._recipients()
        if any(each.address.utf8 for each in recipients) and self._often(0.7):
            steps[-1] = Mail(
                sender, (*self._mail_parameters(extended, sender), Parameter(b"SMTPUTF8"))
            )
        steps += recipients
        if self._often(0.05):
            return [*steps, RSET]
        if self._often(0.02):
            steps.append(Mail(sender))  # nested
        if self._often(0.02):
            steps.append(self._random.choice(OTHERS))
        return [*steps, Send(self._contents.content(chunking=extended))]

    def _mail_parameters(self, extended: bool, sender: Address) -> tuple[Parameter, ...]:
        if not extended:
            return ()
        found = []
        if self._often(0.4):
            parameters, weights = zip(*MAIL_PARAMETERS, strict=True)
            found = self._random.choices(parameters, weights, k=1)
        if sender.utf8 and self._often(0.7):
            found.append(Parameter(b"SMTPUTF8"))
        return tuple(dict.fromkeys(found))

    def _recipients(self) -> list[Rcpt]:
        if self._often(0.01):
            plain = [self._addresses.recipient() for _ in range(3 * MANY)]
            many = [each for each in plain if not each.refusals and not each.utf8 and each.stored]
            return [Rcpt(each) for each in many[:MANY]]
        found: list[Rcpt] = []
        for _ in range(self._random.choice((0, 1, 1, 1, 1, 2, 3, 8))):
            address = self._addresses.recipient()
            parameters: tuple[Parameter, ...] = ()
            if self._often(0.02):
                parameters = (self._random.choice(RCPT_PARAMETERS),)
            found.append(Rcpt(address, parameters))
            if self._often(0.05):
                found.append(Rcpt(address))  # again
            if self._often(0.1) and (twin := self._addresses.case_twin(address)):
                found.append(Rcpt(twin))
        refused = [each for each in found if each.address.refusals]
        return [each for each in found if each not in refused[ERRORS:]]
