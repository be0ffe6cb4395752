"""What has to become of each session: the replies that are right, and the mail that is stored."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from addresses import identity
from contents import HEADER_LIMIT, LIMIT, Content, Data
from dialogue import Exchange, Transcript
from probes import Message
from session import Greet, Mail, Rcpt, Send, StartTls
from stored import HOPS, NEAR, headers, hops, size, stored

RECIPIENTS = 100  # of one transaction, smtpd_recipient_limit
QUEUED = re.compile(r"queued as (\w+)$")
# The end of what the MX puts on top: the Received header of its smtpd.
RECEIVED = re.compile(
    rb"\r\nReceived: from ([^\r]*) \([^\r]*\r\n(?:\t[^\r]*\r\n)*?\tby [^\r]* id (\w+);?\r\n"
    rb"\t(?:for <.*>; )?\w{3}, [ \d]{1,2} \w{3} \d{4} [\d:]{8} [+-]\d{4} \(\w+\)\r\n"
)
TOKEN = re.compile(rb"s\d+-\d+\.fuzz")
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
            allowed += ("553 5.6.7 ",)
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
            allowed += ("553 5.6.7 ", "501 5.1.3 ")
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
        in another transaction (twins.py).
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


# -- the mailbox ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One message of the mailbox, taken apart."""

    token: bytes
    queue_id: str
    return_path: bytes
    original_to: bytes
    content: bytes

    @classmethod
    def of(cls, message: Message) -> Found:
        raw = message.raw
        end = RECEIVED.search(raw, raw.index(b"\r\nX-Original-To: "))
        assert end, f"no Received header of the MX in: {raw[:2000]!r}"
        head = raw[: end.start() + 2]
        (return_path,) = re.findall(rb"(?m)^Return-Path: <(.*)>\r$", head)
        (original_to,) = re.findall(rb"(?m)^X-Original-To: (.*)\r$", head)
        token = TOKEN.search(end[1])
        return cls(
            token[0] if token else b"", end[2].decode(), return_path, original_to, raw[end.end() :]
        )


def return_path(mail: Mail) -> bytes:
    """The Return-Path that a sender has in the mailbox.

    One outside ASCII is written in ASCII (roles/postfix/files/ascii-sender.py): by A-labels if
    only its domain is outside, else quoted-printable at a domain that nobody has.
    """
    address = mail.address.stored or b""
    if address.isascii():
        return address
    local, _, domain = address.rpartition(b"@")
    if local.isascii():
        return local + b"@" + domain.decode().encode("idna")
    plain = set(string.ascii_letters + string.digits + ".-_+")
    encoded = "".join(chr(b) if chr(b) in plain else f"={b:02X}" for b in address)
    return f"{encoded}@smtputf8.invalid".encode()


def compare(deliveries: list[Delivery], mailbox: list[Message]) -> list[Fault]:
    """Compare what was given to the MX with what is in the mailbox."""
    faults: list[Fault] = []
    by_queue_id: dict[str, list[Found]] = defaultdict(list)
    for message in mailbox:
        found = Found.of(message)
        by_queue_id[found.queue_id].append(found)
    doubtful = [each for each in deliveries if not each.sure]
    for delivery in deliveries:
        if delivery.sure:
            faults += complete(delivery, by_queue_id.pop(delivery.queue_id, []))
    for queue_id, messages in by_queue_id.items():
        token = messages[0].token
        candidates = [each for each in doubtful if each.token == token]
        results = [faults_of(each, messages) for each in candidates]
        # One that was perhaps taken may be there once; its own faults count.
        best = min(
            results,
            key=len,
            default=[Fault("unexpected", number_of(token), f"{queue_id}: {messages[0]!r:.500}")],
        )
        faults += best
        if candidates:
            doubtful.remove(candidates[results.index(best)])
    return faults


def number_of(token: bytes) -> int:
    found = re.search(rb"-(\d+)", token)
    return int(found[1]) if found else -1


def complete(delivery: Delivery, messages: list[Found]) -> Iterator[Fault]:
    """Faults of a message that has to be there for each recipient, once."""
    wanted = {each.address.identity: each.address for each in delivery.recipients}
    have = [identity(each.original_to) for each in messages]
    for key, address in wanted.items():
        if key not in have:
            what = f"{delivery.queue_id} to {address.wire!r}; there are {have!r:.500}"
            yield Fault("lost", delivery.number, what)
    yield from faults_of(delivery, messages)


def faults_of(delivery: Delivery, messages: list[Found]) -> list[Fault]:
    """Faults of what is there of a message."""
    faults: list[Fault] = []

    def fault(kind: str, what: str) -> None:
        queue_id = messages[0].queue_id
        faults.append(Fault(kind, delivery.number, f"{queue_id}: {what}"))

    have = Counter(identity(each.original_to) for each in messages)
    for recipient, count in have.items():
        if count > 1:
            fault("twice", f"{count} times to {recipient!r}")
    spelt = {each.address.stored for each in delivery.recipients}
    sender = return_path(delivery.sender)
    wanted = stored(delivery.content)
    for each in messages:
        if each.original_to not in spelt:
            fault("recipient", f"{each.original_to!r} is none of {spelt!r:.500}")
        if each.return_path != sender:
            fault("sender", f"{each.return_path!r}, not {sender!r}")
        if each.content != wanted:
            fault("content", difference(wanted, each.content))
            break
    return faults


def difference(wanted: bytes, have: bytes) -> str:
    """Where two messages begin to differ."""
    place = next(
        (i for i, (a, b) in enumerate(zip(wanted, have, strict=False)) if a != b),
        min(len(wanted), len(have)),
    )
    around = slice(max(place - 20, 0), place + 40)
    lengths = f"at {place} of {len(wanted)} (stored {len(have)})"
    return f"{lengths}: {have[around]!r}, not {wanted[around]!r}"
