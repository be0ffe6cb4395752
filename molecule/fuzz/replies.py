"""The replies that are right in each state of a session, and what was promised by them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from contents import HEADER_LIMIT, LIMIT, Content, Data
from dialogue import Exchange, Transcript
from session import Greet, Mail, Rcpt, Send, StartTls
from stored import HOPS, NEAR, headers, hops, size

RECIPIENTS = 100  # of one transaction, smtpd_recipient_limit
QUEUED = re.compile(r"queued as (\w+)$")
UNDECLARED = ("501 5.1.[37] ", "553 5.6.7 ")  # outside ASCII, and no SMTPUTF8
SEQUENCE = "503 5.5.1 "
TOO_LARGE = "552 5.3.4 "
BDAT_REFUSED = "551 5.0.0 Discarded "  # a chunk after one that was refused
ACCEPTED = "250 .* queued as "
SYNCHRONISATION = ("554 5.5.0 ", "503 5.5.0 ")  # commands sent when the sender had to wait
TOO_MANY_ERRORS = "421 4.7.0 "


@dataclass(frozen=True)
class Fault:
    """One broken promise."""

    kind: str
    number: int  # of the session
    detail: str

    def __str__(self) -> str:
        return f"session {self.number}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Delivery:
    """One message that was given to the MX with a 250 (`sure`), or perhaps (no reply was read)."""

    token: bytes
    number: int
    queue_id: str  # empty if it is not known
    sender: Mail
    recipients: tuple[Rcpt, ...]
    content: Content
    sure: bool


@dataclass
class Judgement:
    """What the replies of one session tell."""

    faults: list[Fault] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # of recipients, by kind and code
    ways: Counter[str] = field(default_factory=Counter)  # by which messages were taken


def matches(reply: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, reply) for pattern in patterns)


class Judge:
    """Goes through one session as a server that keeps to the documentation would."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._number = transcript.session.number
        self.result = Judgement()
        self._mail: Mail | None = None
        self._taken: list[Rcpt] = []
        self._perhaps: list[Rcpt] = []  # sent, but the reply was not read
        self._extended = False
        self._encrypted = False
        self._ended = False
        self._too_large = False  # the last MAIL was, by its SIZE

    def judge(self) -> Judgement:
        session = self._transcript.session
        self._greeting(session.impatient)
        for exchange in self._transcript.exchanges:
            self._step(exchange)
        if self._transcript.ended and not (self._ended or self._illegal or session.cut is not None):
            self._fault("broken off", self._transcript.ended)
        return self.result

    def _fault(self, kind: str, detail: str) -> None:
        self.result.faults.append(Fault(kind, self._number, detail))

    def _greeting(self, impatient: bool) -> None:
        reply = self._transcript.greeting
        self._ended = impatient and not reply.startswith("220")
        if not self._ended and not reply.startswith("220"):
            self._fault("greeting", reply or self._transcript.ended)

    def _expect(self, what: str, reply: str, patterns: tuple[str, ...]) -> bool:
        """Note a fault unless the reply is one of the right ones."""
        if matches(reply, patterns):
            return True
        if matches(reply, self._sender_broke_off()):
            self._ended = True
            return True
        self._fault("wrong reply", f"{what}: {reply}; right would be {patterns}")
        return False

    @property
    def _illegal(self) -> bool:
        """Whether the sender speaks when it has to wait, which ends its session."""
        session = self._transcript.session
        return session.impatient or (session.pipelined and not self._extended)

    def _sender_broke_off(self) -> tuple[str, ...]:
        """What ends a session that does not keep to the protocol."""
        return (*(SYNCHRONISATION if self._illegal else ()), TOO_MANY_ERRORS)

    def _step(self, exchange: Exchange) -> None:
        step = exchange.step
        if isinstance(step, Send):
            self._content(step, exchange)
        elif not exchange.replies:
            if isinstance(step, Mail):
                self._begin(step)
            elif isinstance(step, Rcpt):
                self._perhaps.append(step)
        elif isinstance(step, Greet):
            self._expect("greeting", exchange.replies[0], ("250 ",))
            self._extended = step.extended
            self._forget()
        elif isinstance(step, StartTls):
            self._encrypted = self._expect("STARTTLS", exchange.replies[0], ("220 ",))
            self._forget()
        elif isinstance(step, Mail):
            self._sender(step, exchange.replies[0])
        elif isinstance(step, Rcpt):
            self._recipient(step, exchange.replies[0])
        else:
            self._expect(repr(step.line), exchange.replies[0], step.replies)
            self._ended |= exchange.replies[0].startswith("221")
            if step.line == b"RSET":
                self._forget()

    def _forget(self) -> None:
        self._begin(None)
        self._too_large = False

    def _begin(self, mail: Mail | None) -> None:
        self._mail = mail
        self._taken = []
        self._perhaps = []

    def _sender(self, step: Mail, reply: str) -> None:
        address = step.address
        if self._mail:
            self._expect("nested MAIL", reply, (SEQUENCE, *step.refusals, *address.refusals))
            return
        must_be_refused = address.stored is None or step.refusals
        allowed = (*address.refusals, *step.refusals)
        if address.utf8 and not step.utf8:
            allowed += UNDECLARED
        if not must_be_refused:
            allowed += ("250 ",)
        # smtpd.c keeps the size of a refused MAIL until RSET or EHLO, for one that says none.
        if self._too_large and not any(each.size for each in step.parameters):
            allowed += (TOO_LARGE,)
        if reply.startswith("552") or any(each.size for each in step.parameters):
            self._too_large = reply.startswith("552")
        self._expect(f"sender {address.wire!r}", reply, allowed)
        if reply.startswith("250"):
            self._begin(step)

    def _recipient(self, step: Rcpt, reply: str) -> None:
        address = step.address
        self.result.counts[f"{address.kind} {reply[:3]}"] += 1
        if not self._mail:
            self._expect("RCPT before MAIL", reply, (SEQUENCE, *address.refusals))
            return
        allowed = (*address.refusals, *step.refusals)
        if address.utf8 and not self._mail.utf8:
            allowed += UNDECLARED
        if address.stored is not None and not step.refusals:
            allowed += ("250 ",)
        if len(self._taken) >= RECIPIENTS or self._may_be_twin(step):
            allowed += ("452 4.5.3 ",)
        self._expect(f"recipient {address.wire!r}", reply, allowed)
        if reply.startswith("250"):
            self._taken.append(step)

    def _may_be_twin(self, step: Rcpt) -> bool:
        """Whether one that is taken differs in the case of letters only, or is not known.

        The validator is not asked about postmaster and abuse of the host: when a transaction begins
        with one of them, it does not know who else there is, and each further recipient has to come
        in another transaction (transactions.py).
        """
        mine = step.address
        return any(
            each.address.kind == "postmaster"
            or (mine.twin == each.address.twin and mine.stored != each.address.stored)
            for each in self._taken
        )

    def _content(self, step: Send, exchange: Exchange) -> None:
        mail, taken = self._mail, self._taken
        queue_ids = [found[1] for reply in exchange.replies if (found := QUEUED.search(reply))]
        for queue_id in queue_ids:
            if not (mail and taken):
                self._fault("taken", f"a message without recipients: {exchange.replies}")
                return
            self._deliver(mail, taken, step, queue_id)
        if not queue_ids and exchange.whole and (taken or self._perhaps) and mail:
            answered = len(exchange.replies) and exchange.replies[-1][:1] in "45"
            if not answered or step.early:
                self._deliver(mail, [*taken, *self._perhaps], step, "")
        if exchange.replies and not step.early:
            last = exchange.replies[-1]
            if not (last.startswith("354") and self._transcript.ended):
                self._expect("message", last, self._outcomes(step))
        self._ended |= step.early
        if not exchange.replies or not exchange.replies[-1].startswith(SYNCHRONISATION):
            # A DATA that is refused leaves the transaction open, all else ends it.
            refused_data = isinstance(step.content, Data) and len(exchange.replies) == 1
            if not refused_data:
                self._begin(None)

    def _outcomes(self, step: Send) -> tuple[str, ...]:
        """The replies to a message that are right."""
        if not self._mail:
            return (SEQUENCE, BDAT_REFUSED)
        if not self._taken:
            return ("554 5.5.1 ", BDAT_REFUSED)
        content = step.content
        refusals: tuple[str, ...] = ()
        if hops(content) >= HOPS:
            refusals += ("554 5.4.0 ",)
        if any(len(each) >= HEADER_LIMIT for each in headers(content)):
            refusals += ("550 5.3.4 ",)
        if size(content) > LIMIT:
            refusals += (TOO_LARGE, BDAT_REFUSED)
        elif size(content) > LIMIT - LIMIT // NEAR:
            return (ACCEPTED, TOO_LARGE, BDAT_REFUSED)
        return refusals or (ACCEPTED,)

    def _deliver(self, mail: Mail, recipients: list[Rcpt], step: Send, queue_id: str) -> None:
        if queue_id:
            self.result.ways["DATA" if isinstance(step.content, Data) else "BDAT"] += 1
            self.result.ways["TLS"] += self._encrypted
            self.result.ways["pipelined"] += self._transcript.session.pipelined
        self.result.deliveries.append(
            Delivery(
                self._transcript.session.token.encode(),
                self._number,
                queue_id,
                mail,
                tuple(recipients),
                step.content,
                sure=bool(queue_id),
            )
        )
