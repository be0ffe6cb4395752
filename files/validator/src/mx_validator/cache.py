"""The two caches: known-good domains, and a negative cache that cannot displace them.

All times are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

MAX_KNOWN_GOOD_DOMAINS = 2_000_000  # a thousand times as many as a platform has
MIN_KNOWN_GOOD_DOMAINS = 50_000  # the capacity on hosts with very little memory, too
BYTES_PER_DOMAIN = 250  # in both caches, about
MEMORY_DIVISOR = 16  # known-good domains use at most one part in so many of the host's memory
NEGATIVE_CACHE_DOMAINS = 100_000
# After a refresh without a verdict the domain is not looked up again for this long.
REFRESH_RETRY_SECONDS = 10.0
SCAN_LIMIT = 20  # entries that one scan reads, so that its cost does not depend on their number


def known_good_capacity(host_bytes: int) -> int:
    """Return how many known-good domains a host with so much memory may cache."""
    capacity = host_bytes // MEMORY_DIVISOR // BYTES_PER_DOMAIN
    return max(MIN_KNOWN_GOOD_DOMAINS, min(MAX_KNOWN_GOOD_DOMAINS, capacity))


class NegativeCache:
    """Domains that the platform denied. Evicts the least recently used when full."""

    def __init__(self, max_domains: int = NEGATIVE_CACHE_DOMAINS) -> None:
        self._max_domains = max_domains
        self._denied: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many domains are cached."""
        return len(self._denied)

    def age(self, domain: str, ttl_seconds: float, now: float) -> float | None:
        """Return the age of a denial in seconds; None if there is none or its TTL is over."""
        denied = self._denied.get(domain)
        if denied is None:
            return None
        age = now - denied
        if age >= ttl_seconds:
            del self._denied[domain]
            return None
        self._denied.move_to_end(domain)
        return age

    def add(self, domain: str, now: float) -> None:
        """Add a domain that was denied now."""
        self._denied[domain] = now
        self._denied.move_to_end(domain)
        if len(self._denied) > self._max_domains:
            self._denied.popitem(last=False)

    def remove(self, domain: str) -> bool:
        """Remove a domain; return whether it was cached."""
        return self._denied.pop(domain, None) is not None

    def clear(self) -> None:
        """Remove all domains."""
        self._denied.clear()


class DenialStreak(NamedTuple):
    """Denials in a row of a known-good domain, which is still allowed."""

    first: float
    last: float
    number: int
    next_lookup: float


class KnownGoodCache:
    """Domains that the platform confirmed, with the time of the last confirmation.

    A domain is unused if its last confirmation was a refresh without a mail; its next mail, and the
    confirmation that follows, change that.
    """

    def __init__(self, max_domains: int = MAX_KNOWN_GOOD_DOMAINS) -> None:
        self.max_domains = max_domains
        # Both are ordered by confirmation, the oldest first: the domains to evict or to refresh are
        # at the beginning. Unused ones that are not refreshed any more are moved to the end.
        self._used: OrderedDict[str, float] = OrderedDict()
        # Confirmation and last mail. Apart, so that the domains of nearly all mail are few.
        self._unused: OrderedDict[str, tuple[float, float]] = OrderedDict()
        # After a refresh without a confirmation: the denials, ordered by the next lookup, and apart
        # from them, since an outage makes many, the times before which there is no next one.
        self._denials: OrderedDict[str, DenialStreak] = OrderedDict()
        self._retry_after: dict[str, float] = {}
        self._last_second = 0.0

    def __len__(self) -> int:
        """Return how many domains are known good."""
        return len(self._used) + len(self._unused)

    def items(self) -> Iterator[tuple[str, float]]:
        """Yield all domains with the times of their confirmation, the oldest first."""
        unused = ((domain, confirmed) for domain, (confirmed, _) in self._unused.items())
        return heapq.merge(unused, self._used.items(), key=lambda item: item[1])

    def last_mails(self) -> Iterator[tuple[str, float]]:
        """Yield the unused domains with the times of their last mail."""
        return ((domain, mailed) for domain, (_, mailed) in self._unused.items())

    def confirmed_at(self, domain: str) -> float | None:
        """Return when a domain was last confirmed; None if it is not known good."""
        confirmed = self._used.get(domain)
        if confirmed is None and domain in self._unused:
            confirmed, _ = self._unused[domain]
        return confirmed

    def oldest(self) -> float | None:
        """Return the time of the oldest confirmation among the domains that are not unused."""
        return next(iter(self._used.values()), None)

    def newest(self) -> float | None:
        """Return the time of the last confirmation."""
        unused = (confirmed for confirmed, _ in reversed(self._unused.values()))
        last = [*itertools.islice(reversed(self._used.values()), 1)]
        return max([*last, *itertools.islice(unused, 1)], default=None)

    def load(self, entries: Iterable[tuple[str, float]], mailed: Mapping[str, float]) -> list[str]:
        """Add domains with the times of their confirmation, the oldest first; return the evicted.

        `mailed` has the unused ones among them, with the time of their last mail.
        """
        evicted = []
        for domain, confirmed in entries:
            if domain in mailed:
                self._unused[domain] = (
                    self._whole_seconds(confirmed),
                    float(math.floor(mailed[domain])),
                )
            else:
                self._used[domain] = self._whole_seconds(confirmed)
            evicted += self._evict()
        return evicted

    def confirm(self, domain: str, now: float) -> list[str]:
        """Record a confirmation that a mail caused; return the domains evicted for it."""
        self._reset_refresh(domain)
        self._unused.pop(domain, None)
        self._used[domain] = self._whole_seconds(now)
        self._used.move_to_end(domain)
        return self._evict()

    def confirm_without_mail(self, domain: str, now: float) -> float | None:
        """Record a confirmation without a mail.

        Returns the time of the domain's last mail; None if the domain was not known good.
        """
        self._reset_refresh(domain)
        # Of a domain that was not unused, the last confirmation followed its last mail.
        confirmed = self._used.pop(domain, None)
        _, mailed = self._unused.pop(domain, (confirmed, confirmed))
        if mailed is not None:
            self._unused[domain] = (self._whole_seconds(now), mailed)
        return mailed

    def is_unused(self, domain: str) -> bool:
        """Whether a domain is known good, and was last confirmed without a mail."""
        return domain in self._unused

    def record_mail(self, domain: str, now: float) -> None:
        """Record the time of a mail, if the domain is unused."""
        unused = self._unused.get(domain)
        if unused is not None:
            confirmed, _ = unused
            self._unused[domain] = (confirmed, self._whole_seconds(now))

    def record_denial(
        self, domain: str, now: float, next_lookup: float, max_gap: float
    ) -> DenialStreak:
        """Record a denial; return the denials in a row.

        A denial more than `max_gap` seconds after the last one begins a new row: what the platform
        would have said in between is not known.
        """
        before = self._denials.get(domain)
        self._reset_refresh(domain)
        if before is None or now - before.last > max_gap:
            denials = DenialStreak(now, now, 1, next_lookup)
        else:
            denials = DenialStreak(before.first, now, before.number + 1, next_lookup)
        self._denials[domain] = denials
        return denials

    def record_failed_refresh(self, domain: str, now: float) -> None:
        """Record a refresh without a verdict. It ends a row of denials."""
        self._reset_refresh(domain)
        self._retry_after[domain] = now + REFRESH_RETRY_SECONDS

    def reset_refreshes(self) -> None:
        """Clear the denials and failed refreshes of all domains."""
        self._denials.clear()
        self._retry_after.clear()

    def remove(self, domain: str) -> bool:
        """Remove a domain; return whether it was cached."""
        self._reset_refresh(domain)
        return (
            self._used.pop(domain, None) is not None or self._unused.pop(domain, None) is not None
        )

    def expired(self, before: float) -> list[str]:
        """Return some of the domains that were last confirmed earlier than `before`."""
        used = itertools.islice(self._used.items(), SCAN_LIMIT)
        unused = itertools.islice(self._unused.items(), SCAN_LIMIT)
        return [domain for domain, confirmed in used if confirmed < before] + [
            domain for domain, (confirmed, _) in unused if confirmed < before
        ]

    def may_refresh(self, domain: str, now: float) -> bool:
        """Whether the last refresh of a domain is long enough ago for another."""
        denials = self._denials.get(domain)
        next_lookup = self._retry_after.get(domain, 0.0) if denials is None else denials.next_lookup
        return now >= next_lookup

    def due_denied(self, now: float) -> list[str]:
        """Return some domains with denials in a row whose next lookup is due."""
        return [
            domain
            for domain, denials in itertools.islice(self._denials.items(), SCAN_LIMIT)
            if now >= denials.next_lookup
        ]

    def due_stale(self, before: float, mailed_since: float, now: float) -> list[str]:
        """Return some domains to refresh that were last confirmed earlier than `before`.

        Unused domains are returned only if their last mail came after `mailed_since`.
        """
        due = [
            domain
            for domain, confirmed in itertools.islice(self._used.items(), SCAN_LIMIT)
            if confirmed < before and self.may_refresh(domain, now)
        ]
        for domain, unused in [*itertools.islice(self._unused.items(), SCAN_LIMIT)]:
            confirmed, mailed = unused
            if confirmed < before and mailed < mailed_since:
                self._unused.move_to_end(domain)  # the next scan reads those behind it
            elif confirmed < before and self.may_refresh(domain, now):
                due.append(domain)
        return due

    def _whole_seconds(self, time: float) -> float:
        """Return a time in whole seconds: one object for all that fall in the same second.

        A million objects would take 24 MB, and slow down lookups by missing the processor's cache.
        """
        if not self._last_second <= time < self._last_second + 1:
            self._last_second = float(math.floor(time))
        return self._last_second

    def _reset_refresh(self, domain: str) -> None:
        self._denials.pop(domain, None)
        self._retry_after.pop(domain, None)

    def _evict(self) -> list[str]:
        """Remove a domain if there are too many: an unused one if there is one, else the oldest."""
        if len(self) <= self.max_domains:
            return []
        domain = next(iter(self._unused or self._used))
        self.remove(domain)
        return [domain]
