"""What was promised to senders, what the platform got, and whether the one is the other."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import sha256

from probes import Message

QUEUED = re.compile(r"queued as (\S+)")
# The Received headers that Postfix and Dovecot put on top.
QUEUE_ID = re.compile(rb"\r\n\tby [^\r]* with E?SMTPS? id ([^\s;]+)")
DELIVERY = re.compile(rb"with LMTP\r\n\tid (\S+)\r\n.*?; ([^\r;]+)\r\n", re.S)
SLACK_SECONDS = 3  # a delivery's time is in whole seconds, and it began before


@dataclass(frozen=True)
class Copy:
    """One delivery of a message into the mailbox."""

    delivery: str  # Dovecot's identifier of it
    queue_id: str  # Postfix's identifier of what it took from the sender
    time: float  # seconds since 1970
    digest: str

    @classmethod
    def of(cls, message: Message) -> Copy:
        """Read it off the headers; a fetch that is repeated gives the same copy."""
        queue_id = QUEUE_ID.search(message.raw)
        delivery = DELIVERY.search(message.raw)
        assert queue_id, f"no Received header of Postfix: {message.raw[:2000]!r}"
        assert delivery, f"no Received header of Dovecot: {message.raw[:2000]!r}"
        return cls(
            delivery[1].decode(),
            queue_id[1].decode(),
            parsedate_to_datetime(delivery[2].decode()).timestamp(),
            sha256(message.sent).hexdigest(),
        )


@dataclass(frozen=True)
class Event:
    """What a sender met."""

    time: float
    kind: str  # accepted, deferred, refused, denied (a foreign domain), broken, doubtful
    recipient: str
    reply: str = ""


@dataclass
class Verdict:
    """What of the promises did not hold: all lists are to be empty; and the duplicates."""

    lost: list[str] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    doubtful: int = 0  # sent again, since the sender's connection broke before the reply
    handover: int = 0  # delivered again, since Postfix's connection to Dovecot did

    @property
    def broken(self) -> list[str]:
        """Every promise that was broken, a line each."""
        return [
            f"{name}: {each}"
            for name in ("lost", "spoilt", "refused", "foreign", "unexplained")
            for each in getattr(self, name)
        ]


class Ledger:
    """Both sides of the books, for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.digests: dict[str, str] = {}  # of all that was sent to authorised domains
        self.events: list[Event] = []
        self.copies: dict[str, dict[str, Copy]] = defaultdict(dict)
        self.fetched = 0

    def sending(self, recipients: list[str], digest: str) -> None:
        """Note what is about to be sent to authorised domains."""
        with self._lock:
            self.digests.update(dict.fromkeys(recipients, digest))

    def note(self, kind: str, recipient: str, reply: str = "") -> None:
        """Note what became of one recipient in one attempt."""
        with self._lock:
            self.events.append(Event(time.time(), kind, recipient, reply))

    def collect(self, message: Message) -> None:
        """Note a message that was fetched."""
        copy = Copy.of(message)
        with self._lock:
            self.copies[message.original_to][copy.delivery] = copy
            self.fetched += 1

    def count(self, kind: str, since: float = 0, until: float = float("inf")) -> int:
        """Return how many events of a kind there were in a time."""
        with self._lock:
            return sum(e.kind == kind and since <= e.time <= until for e in self.events)

    def missing(self) -> set[str]:
        """Return the recipients whose accepted message has not been fetched."""
        with self._lock:
            return {e.recipient for e in self.events if e.kind == "accepted"} - set(self.copies)

    def fetched_of(self, since: float) -> int:
        """Return how many of the messages that were accepted since then have been fetched."""
        with self._lock:
            return sum(
                e.kind == "accepted" and e.time >= since and e.recipient in self.copies
                for e in self.events
            )

    def judge(self, disasters: list[tuple[float, float]]) -> Verdict:
        """Compare both sides; a message may have come twice only in the time of a disaster."""
        accepted = [e for e in self.events if e.kind == "accepted"]
        verdict = Verdict(lost=sorted(self.missing()))
        verdict.foreign = [e.recipient for e in accepted if e.recipient not in self.digests]
        doubts = Counter(e.recipient for e in self.events if e.kind == "doubtful")
        promised = {
            (e.recipient, queued[1]) for e in accepted if (queued := QUEUED.search(e.reply))
        }
        verdict.refused = [f"{e.recipient}: {e.reply}" for e in self.events if e.kind == "refused"]
        for recipient, found in self.copies.items():
            copies = sorted(found.values(), key=lambda copy: copy.time)
            if recipient not in self.digests:
                verdict.foreign.append(recipient)
                continue
            verdict.spoilt += [
                f"{recipient} in {copy.queue_id}"
                for copy in copies
                if copy.digest != self.digests[recipient]
            ]
            # What came in more than once: each time but one, the sender had no reply.
            queue_ids = {copy.queue_id for copy in copies}
            unpromised = {each for each in queue_ids if (recipient, each) not in promised}
            verdict.doubtful += len(queue_ids) - 1
            if len(unpromised) > doubts[recipient]:
                verdict.unexplained.append(f"{recipient}: {len(queue_ids)} times from the sender")
            # What came in once and was delivered again.
            for queue_id in queue_ids:
                *early, _ = [copy for copy in copies if copy.queue_id == queue_id]
                verdict.handover += len(early)
                verdict.unexplained += [
                    f"{recipient}: delivered again from {queue_id}"
                    for copy in early
                    if not any(
                        began - SLACK_SECONDS <= copy.time <= ended + SLACK_SECONDS
                        for began, ended in disasters
                    )
                ]
        return verdict
