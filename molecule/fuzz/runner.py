"""Runs sessions against a host, and judges what became of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from testinfra.host import Host

from deliveries import compare
from dialogue import Transcript, converse
from minimise import minimise
from probes import DELIVERY_SECONDS, POLL_SECONDS, Message, Mx
from replies import Delivery, Fault, Judge
from session import Session

AT_ONCE = 16  # sessions side by side
QUICK_SECONDS = 5  # until one message is delivered, while a failure is made smaller


@dataclass
class Outcome:
    """What some sessions have shown."""

    faults: list[Fault] = field(default_factory=list)
    transcripts: list[Transcript] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)


class Runner:
    """Sends sessions, waits until the queue is empty, reads and empties the mailbox."""

    def __init__(self, mx: Mx, host: Host) -> None:
        self._mx = mx
        self._host = host
        # smtpd may still be reading what a sender has cut off, and take it a little later.
        self._doubtful: list[Delivery] = []

    def run(self, sessions: Sequence[Session], seconds: float = DELIVERY_SECONDS) -> Outcome:
        """Run sessions side by side and judge them; deliveries have so many seconds."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            transcripts = list(pool.map(lambda each: converse(self._mx, each), sessions))
        outcome = Outcome(transcripts=transcripts)
        for transcript in transcripts:
            judgement = Judge(transcript).judge()
            outcome.faults += judgement.faults
            outcome.deliveries += judgement.deliveries
            outcome.counts += judgement.counts
            outcome.ways += judgement.ways
        numbers = {each.queue_id: each.number for each in outcome.deliveries}
        for waiting in self._settle(seconds):
            number = numbers.get(waiting["queue_id"], -1)
            outcome.faults.append(Fault("in the queue", number, json.dumps(waiting)))
            self._host.check_output("postsuper -d %s", waiting["queue_id"])
        outcome.faults += compare(outcome.deliveries + self._doubtful, self._collect())
        self._doubtful += [each for each in outcome.deliveries if not each.sure]
        return outcome

    def smallest(self, session: Session, kinds: set[str], seconds: float) -> Outcome:
        """Run a failing session alone, then smaller ones; return the smallest that fails as it did.

        The outcome has no faults if it does not fail alone.
        """
        found = Outcome()

        def fails(candidate: Session) -> bool:
            nonlocal found
            outcome = self.run([candidate], QUICK_SECONDS)
            failed = any(each.kind in kinds for each in outcome.faults)
            found = outcome if failed else found
            return failed

        if fails(session):
            minimise(session, fails, seconds)
        return found

    def _settle(self, seconds: float) -> list[dict[str, Any]]:
        """Wait until the queue is empty; return what is in it when the time is over."""
        deadline = time.monotonic() + seconds
        while queue := self._host.check_output("postqueue -j"):
            if time.monotonic() > deadline:
                return [json.loads(line) for line in queue.splitlines()]
            time.sleep(POLL_SECONDS)
        return []

    def _collect(self) -> list[Message]:
        """Fetch all messages and delete them."""
        found = self._mx.fetch()
        self._mx.empty()
        return found
