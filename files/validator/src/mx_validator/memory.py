"""What is remembered about domains, apart: nothing that is denied can push out what is known good.

All moments are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

# About 220 bytes each, so that this takes 450 MB; a platform has a thousandth of it.
KNOWN_GOOD_DOMAINS = 2_000_000
DENIED_DOMAINS = 100_000  # about 250 bytes each
# A domain whose refresh came to nothing is asked about again after this time, not with every mail.
RETRY_SECONDS = 10.0
DUE_LOOKED_AT = 20  # entries at a time, so that looking costs the same however many there are


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
    """Domains that the platform confirmed, with the moment at which it last did."""

    def __init__(self, max_domains: int = KNOWN_GOOD_DOMAINS) -> None:
        self._max_domains = max_domains
        # The longest unconfirmed first, so that the ones to drop or to ask about are found at once.
        self._confirmed: OrderedDict[str, float] = OrderedDict()
        # What the last refresh came to if it was no confirmation. The first to be asked again is
        # the first to be found; the others, of which an outage makes many, do not stand before it.
        self._denials: OrderedDict[str, Denials] = OrderedDict()
        self._pauses: dict[str, float] = {}
        self._moment = 0.0
        self.confirmed = self._confirmed.get

    def __len__(self) -> int:
        """Return how many domains are known good."""
        return len(self._confirmed)

    def items(self) -> Iterable[tuple[str, float]]:
        """Return all domains with their moments, the longest ago first."""
        return self._confirmed.items()

    def oldest(self) -> float | None:
        """Return the moment of the domain that has been unconfirmed longest."""
        return next(iter(self._confirmed.values()), None)

    def newest(self) -> float | None:
        """Return the moment of the last confirmation."""
        return next(reversed(self._confirmed.values()), None)

    def load(self, entries: Iterable[tuple[str, float]]) -> None:
        """Add domains with their moments, the longest ago first."""
        self._confirmed.update((domain, self._shared(moment)) for domain, moment in entries)

    def confirm(self, domain: str, now: float) -> str | None:
        """Remember that the platform confirms a domain; return the one that had to go for it."""
        self._settle(domain)
        self._confirmed[domain] = self._shared(now)
        self._confirmed.move_to_end(domain)
        if len(self._confirmed) > self._max_domains:
            return self._drop_oldest()
        return None

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
        return self._confirmed.pop(domain, None) is not None

    def drop_older_than(self, before: float) -> str | None:
        """Forget the longest unconfirmed domain if that was before `before`, and return it."""
        if self._confirmed and next(iter(self._confirmed.values())) < before:
            return self._drop_oldest()
        return None

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

    def old_due(self, before: float, now: float) -> list[str]:
        """Return domains to ask about that the platform last confirmed earlier than `before`."""
        return [
            domain
            for domain, moment in itertools.islice(self._confirmed.items(), DUE_LOOKED_AT)
            if moment < before and self.may_refresh(domain, now)
        ]

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

    def _drop_oldest(self) -> str:
        domain, _ = self._confirmed.popitem(last=False)
        self._settle(domain)
        return domain
