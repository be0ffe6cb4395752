"""Compares what was promised to the senders with what is in the mailbox."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from addresses import identity
from probes import Message
from replies import Delivery, Fault
from session import Mail
from stored import stored

# The end of what the MX puts on top: the Received header of its smtpd.
RECEIVED = re.compile(
    rb"\r\nReceived: from ([^\r]*) \([^\r]*\r\n(?:\t[^\r]*\r\n)*?\tby [^\r]* id (\w+);?\r\n"
    rb"\t(?:for <.*>; )?\w{3}, [ \d]{1,2} \w{3} \d{4} [\d:]{8} [+-]\d{4} \(\w+\)\r\n"
)
TOKEN = re.compile(rb"s\d+-\d+\.fuzz")


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

    # u@d and "u"@d are one recipient, but two for cleanup(8), which compares what was written
    # (cleanup_out_recipient(): been_here() with the DSN original recipient).
    spellings = {(each.address.identity, each.address.wire) for each in delivery.recipients}
    named = Counter(recipient for recipient, _ in spellings)
    have = Counter(identity(each.original_to) for each in messages)
    for recipient, count in have.items():
        if recipient in named and count > named[recipient]:
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
