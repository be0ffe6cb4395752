"""What is remembered about domains, apart: nothing that is denied can push out what is known good.

All moments are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

KNOWN_GOOD_DOMAINS = 2_000_000  # at most; a platform has a thousandth of it
LEAST_KNOWN_GOOD_DOMAINS = 50_000  # also on a host with less memory than anybody rents
KNOWN_GOOD_BYTES = 250  # each
KNOWN_GOOD_PART = 16  # at most one part in so many of the host's memory is for them
DENIED_DOMAINS = 100_000  # about 250 bytes each
# A domain whose refresh came to nothing is asked about again after this time, not with every mail.
RETRY_SECONDS = 10.0
DUE_LOOKED_AT = 20  # entries at a time, so that looking costs the same however many there are


def room_for_known_good(host_bytes: int) -> int:
    """Return for how many known-good domains a host with so much memory has room."""
    room = host_bytes // KNOWN_GOOD_PART // KNOWN_GOOD_BYTES
    return max(LEAST_KNOWN_GOOD_DOMAINS, min(KNOWN_GOOD_DOMAINS, room))


class Denied:
    """Domains that the platform denied. Drops the least recently used when full."""

    def __init__(self, max_domains: int = DENIED_DOMAINS) -> None:
        self._max_domains = max_domains
        self._entries: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many domains are remembered."""
        return len(self._entries)

    def age(self, domain: str, ttl_seconds: float, now: float) -> float | None:
        """Return for how many seconds this is known, or None if for longer than the TTL."""
        moment = self._entries.get(domain)
        if moment is None:
            return None
        age = now - moment
        if age >= ttl_seconds:
            del self._entries[domain]
            return None
        self._entries.move_to_end(domain)
        return age

    def add(self, domain: str, now: float) -> None:
        """Remember a domain from now on."""
        self._entries[domain] = now
        self._entries.move_to_end(domain)
        if len(self._entries) > self._max_domains:
            self._entries.popitem(last=False)

    def drop(self, domain: str) -> bool:
        """Forget a domain; return whether it was there."""
        return self._entries.pop(domain, None) is not None

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


class Denials(NamedTuple):
    """Of a known-good domain: those in a row, which do not count yet."""

    first: float
    last: float
    number: int
    ask_again: float


class KnownGood:
    """Domains that the platform confirmed, with the moment at which it last did.

    A domain whose last confirmation was not for a mail is unused, until it is confirmed for one.
    """

    def __init__(self, max_domains: int = KNOWN_GOOD_DOMAINS) -> None:
        self.max_domains = max_domains
        # The longest unconfirmed first, so that the ones to drop or to ask about are found at once.
        self._confirmed: OrderedDict[str, float] = OrderedDict()
        # Unused ones apart: what nearly all mail is for stays small. With the moment of their last
        # mail, and in the same order, but for those that are not asked about any more.
        self._unused: OrderedDict[str, tuple[float, float]] = OrderedDict()
        # What the last refresh came to if it was no confirmation. The first to be asked again is
        # the first to be found; the others, of which an outage makes many, do not stand before it.
        self._denials: OrderedDict[str, Denials] = OrderedDict()
        self._pauses: dict[str, float] = {}
        self._moment = 0.0
        # The moment of a domain that is not unused.
        self.confirmed_for_mail = self._confirmed.get

    def __len__(self) -> int:
        """Return how many domains are known good."""
        return len(self._confirmed) + len(self._unused)

    def items(self) -> Iterator[tuple[str, float]]:
        """Yield all domains with their moments, the longest ago first."""
        unused = ((domain, confirmed) for domain, (confirmed, _) in self._unused.items())
        return heapq.merge(unused, self._confirmed.items(), key=lambda item: item[1])

    def mailed(self) -> Iterator[tuple[str, float]]:
        """Yield the unused domains with the moments of their last mail."""
        return ((domain, mailed) for domain, (_, mailed) in self._unused.items())

    def confirmed(self, domain: str) -> float | None:
        """Return the moment of a domain; None if it is not known good."""
        moment = self._confirmed.get(domain)
        if moment is None and domain in self._unused:
            moment, _ = self._unused[domain]
        return moment

    def oldest(self) -> float | None:
        """Return the moment of the domain in use that has been unconfirmed longest."""
        return next(iter(self._confirmed.values()), None)

    def newest(self) -> float | None:
        """Return the moment of the last confirmation."""
        unused = (confirmed for confirmed, _ in reversed(self._unused.values()))
        last = [*itertools.islice(reversed(self._confirmed.values()), 1)]
        return max([*last, *itertools.islice(unused, 1)], default=None)

    def load(self, entries: Iterable[tuple[str, float]], mailed: Mapping[str, float]) -> list[str]:
        """Add domains with their moments, the longest ago first; return those that had to go.

        `mailed` has those that are unused, with the moment of their last mail.
        """
        displaced = []
        for domain, moment in entries:
            if domain in mailed:
                self._unused[domain] = (self._shared(moment), float(math.floor(mailed[domain])))
            else:
                self._confirmed[domain] = self._shared(moment)
            displaced += self._displaced()
        return displaced

    def confirm(self, domain: str, now: float) -> list[str]:
        """Remember that the platform confirms a domain; return those that had to go for it."""
        self._settle(domain)
        self._unused.pop(domain, None)
        self._confirmed[domain] = self._shared(now)
        self._confirmed.move_to_end(domain)
        return self._displaced()

    def confirm_unused(self, domain: str, now: float) -> float | None:
        """Remember that the platform confirms a domain though no mail came for it.

        Returns the moment of its last mail; None if the domain was not known good.
        """
        self._settle(domain)
        # Until now, each mail was followed by a confirmation.
        confirmed = self._confirmed.pop(domain, None)
        _, mailed = self._unused.pop(domain, (confirmed, confirmed))
        if mailed is not None:
            self._unused[domain] = (self._shared(now), mailed)
        return mailed

    def is_unused(self, domain: str) -> bool:
        """Whether a domain is known good, but last confirmed without a mail."""
        return domain in self._unused

    def mail(self, domain: str, now: float) -> None:
        """Remember that mail came for a domain, if it is unused."""
        unused = self._unused.get(domain)
        if unused is not None:
            confirmed, _ = unused
            self._unused[domain] = (confirmed, self._shared(now))

    def deny(self, domain: str, now: float, ask_again: float, max_gap: float) -> Denials:
        """Remember that the platform denies a domain; return its denials in a row.

        One that comes more than `max_gap` seconds after the last begins a row of its own: nobody
        knows what the platform would have said in between.
        """
        before = self._denials.get(domain)
        self._settle(domain)
        if before is None or now - before.last > max_gap:
            denials = Denials(now, now, 1, ask_again)
        else:
            denials = Denials(before.first, now, before.number + 1, ask_again)
        self._denials[domain] = denials
        return denials

    def leave(self, domain: str, now: float) -> None:
        """Remember that the platform cannot say: whatever it said before, it did not repeat it."""
        self._settle(domain)
        self._pauses[domain] = now + RETRY_SECONDS

    def settle_all(self) -> None:
        """Forget what the platform said about domains that it did not confirm."""
        self._denials.clear()
        self._pauses.clear()

    def drop(self, domain: str) -> bool:
        """Forget a domain; return whether it was there."""
        self._settle(domain)
        return (
            self._confirmed.pop(domain, None) is not None
            or self._unused.pop(domain, None) is not None
        )

    def expired(self, before: float) -> list[str]:
        """Return some of the domains that were last confirmed earlier than `before`."""
        used = itertools.islice(self._confirmed.items(), DUE_LOOKED_AT)
        unused = itertools.islice(self._unused.items(), DUE_LOOKED_AT)
        return [domain for domain, moment in used if moment < before] + [
            domain for domain, (moment, _) in unused if moment < before
        ]

    def may_refresh(self, domain: str, now: float) -> bool:
        """Whether it is time to ask the platform about a domain again."""
        denials = self._denials.get(domain)
        ask_again = self._pauses.get(domain, 0.0) if denials is None else denials.ask_again
        return now >= ask_again

    def denied_due(self, now: float) -> list[str]:
        """Return denied domains to ask about, so that the platform repeats it or takes it back."""
        return [
            domain
            for domain, denials in itertools.islice(self._denials.items(), DUE_LOOKED_AT)
            if now >= denials.ask_again
        ]

    def old_due(self, before: float, mailed_since: float, now: float) -> list[str]:
        """Return domains to ask about that the platform last confirmed earlier than `before`.

        Unused ones among them have had a mail since `mailed_since`; without, they are left alone.
        """
        due = [
            domain
            for domain, moment in itertools.islice(self._confirmed.items(), DUE_LOOKED_AT)
            if moment < before and self.may_refresh(domain, now)
        ]
        for domain, unused in [*itertools.islice(self._unused.items(), DUE_LOOKED_AT)]:
            moment, mailed = unused
            if moment < before and mailed < mailed_since:
                self._unused.move_to_end(domain)  # out of the way of those behind it
            elif moment < before and self.may_refresh(domain, now):
                due.append(domain)
        return due

    def _shared(self, moment: float) -> float:
        """Return the moment in whole seconds: one object for all domains confirmed within one.

        A million objects would take 24 MB, and most lookups would have to fetch one from far away.
        """
        if not self._moment <= moment < self._moment + 1:
            self._moment = float(math.floor(moment))
        return self._moment

    def _settle(self, domain: str) -> None:
        self._denials.pop(domain, None)
        self._pauses.pop(domain, None)

    def _displaced(self) -> list[str]:
        """Forget a domain if there are too many: an unused one if possible, else the oldest."""
        if len(self) <= self.max_domains:
            return []
        domain = next(iter(self._unused or self._confirmed))
        self.drop(domain)
        return [domain]
