"""Decides about a domain: from the cache at once, otherwise by a lookup at the platform.

Any doubt is DEFER, never DENY: a sender tries again after a 451, and gives up after a 554. A domain
that the platform has confirmed is known good: it stays allowed while lookups fail
(stale-if-error), and until the platform has denied it several times over a grace period.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mx_validator.cache import KnownGoodCache, NegativeCache
from mx_validator.model import UNEXPECTED_ERROR, Answer, LookupKind, Outcome, Source, Verdict
from mx_validator.throttle import Throttle

# Less than the 10 s that Postfix is configured to wait; the rest is a margin for a busy host.
ANSWER_SECONDS = 8.0
# A known-good domain becomes denied after at least this many denials in a row.
DENIALS_TO_COUNT = 5
MIN_DENIAL_INTERVAL_SECONDS = 1.0  # between two lookups about a denied known-good domain
# Two denials are in a row if fewer than this many lookups would have fitted between them. What the
# platform would have said in a longer gap is not known.
GAP_LOOKUPS = 3
MIN_GAP_LOOKUP_SECONDS = 10.0  # for each of them: a lookup may take 12 s, and waits for its turn
# After this fraction of `known_good` a domain is refreshed even if no mail comes for it.
REFRESH_WITHOUT_MAIL_AFTER = 0.5
# A domain without mail for this long is not refreshed any more, and expires.
KEEP_WITHOUT_MAIL_SECONDS = 28 * 86400.0

logger = logging.getLogger(__name__)

Lookup = Callable[[str, LookupKind], Awaitable[Outcome]]


class DomainStore(Protocol):
    """Stores domains on disk, each with a time."""

    def save(self, domain: str, age_seconds: float = 0.0) -> None:
        """Store a domain with the time `age_seconds` ago."""

    def delete(self, domain: str) -> None:
        """Remove a domain from the disk."""


class Stores(NamedTuple):
    """What is stored of the known-good domains."""

    confirmed: DomainStore  # all of them, with the time of the platform's last confirmation
    mailed: DomainStore  # the unused ones among them, with the time of their last mail


@dataclass(frozen=True)
class CacheTimes:
    """How long the platform's answers count, in seconds."""

    allow_ttl: float  # a confirmation is fresh for this long
    deny_ttl: float  # a denial stays in the negative cache for this long
    known_good: float  # a confirmation may be served stale for this long
    deny_grace: float  # a known-good domain must be denied for this long before it is dropped


class Decider:
    """Answers requests about normalised domains. Not thread-safe: it belongs to one event loop."""

    def __init__(
        self,
        lookup: Lookup,
        times: CacheTimes,
        throttle: Throttle,
        stores: Stores,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.times = times
        self.known_good = KnownGoodCache()
        self.denied = NegativeCache()
        # Domains on the platform's own list without a lookup so far. The list is no verdict.
        self.listed: set[str] = set()
        self.answer_counts: Counter[tuple[str, Source]] = Counter()
        self._lookup = lookup
        self._throttle = throttle
        self._stores = stores
        self._clock = clock
        self._fresh_since = float("-inf")  # confirmations before this time are stale
        self._lookups: dict[str, asyncio.Task[Answer]] = {}  # in flight, by domain (single-flight)
        self._refreshed_without_mail: set[str] = set()  # domains with such a lookup in flight
        self._is_full = False

    def load(
        self, ages: Iterable[tuple[str, float]], mail_ages: Mapping[str, float] | None = None
    ) -> None:
        """Load known-good domains with their ages in seconds, the oldest first.

        `mail_ages` has the unused ones among them, with the seconds since their last mail.
        """
        now = self._clock()
        mailed = {domain: now - age for domain, age in (mail_ages or {}).items()}
        self._remove_evicted(
            self.known_good.load(((domain, now - age) for domain, age in ages), mailed)
        )
        for domain in mailed:
            if self.known_good.confirmed_at(domain) is None:
                self._stores.mailed.delete(domain)

    def ages(self) -> Iterator[tuple[str, float]]:
        """Yield all known-good domains with their ages in seconds, the oldest first."""
        now = self._clock()
        return ((domain, now - confirmed) for domain, confirmed in self.known_good.items())

    def mail_ages(self) -> Iterator[tuple[str, float]]:
        """Yield the unused ones among them, with the seconds since their last mail."""
        now = self._clock()
        return ((domain, now - mailed) for domain, mailed in self.known_good.last_mails())

    def change_platform(self) -> None:
        """Clear the negative cache, and make each known-good domain stale.

        The domains stay known good: in most cases it is the same platform under another name, or a
        typing error.
        """
        self._lookups.clear()
        self._refreshed_without_mail.clear()
        self.denied.clear()
        self.listed.clear()
        self.known_good.reset_refreshes()
        self._fresh_since = self._clock()

    def forget(self, domain: str) -> bool:
        """Remove a domain from the caches and ignore its lookup; return whether it was cached."""
        self._lookups.pop(domain, None)
        self._refreshed_without_mail.discard(domain)
        self.listed.discard(domain)
        return self._remove(domain) | self.denied.remove(domain)

    def decide(self, domain: str) -> Answer | Coroutine[Any, Any, Answer]:
        """Return the answer, or a coroutine for it if a lookup is needed first.

        Requests about one domain share one lookup. It continues when they are gone, and its result
        is cached for the next.
        """
        now = self._clock()
        answer = self._cached_answer(domain, now)
        if answer is None:
            lookup = self._lookups.get(domain)
            if lookup is not None:
                return self._wait_for(lookup, domain)
            kind = LookupKind.LISTED if domain in self.listed else LookupKind.UNKNOWN
            refusal = self._throttle.reserve_lookup(kind, now)
            if refusal is None:
                return self._wait_for(self._start_lookup(domain, kind), domain)
            answer = Answer(Verdict.DEFER, refusal, "limit")
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", _log_line(domain, answer))
        return self.count(answer)

    def run_maintenance(self) -> None:
        """Drop what has expired and refresh what is due. To be called about once a second."""
        now = self._clock()
        times = self.times
        health = self._throttle.breaker.health
        if health.last_verdict is not None and health.failing_since is None:
            # Only while the platform answers: otherwise what a wrong clock drops could not return.
            for domain in self.known_good.expired(now - max(times.known_good, times.allow_ttl)):
                self._remove(domain)
        self._refresh_denied(now)
        stale = now - max(times.known_good * REFRESH_WITHOUT_MAIL_AFTER, times.allow_ttl)
        for domain in self.known_good.due_stale(stale, now - KEEP_WITHOUT_MAIL_SECONDS, now):
            if self._refresh(domain, now):
                self._refreshed_without_mail.add(domain)

    def count(self, answer: Answer) -> Answer:
        """Count an answer for the metrics, and return it."""
        self.answer_counts[answer.verdict.value, answer.source] += 1
        return answer

    def _cached_answer(self, domain: str, now: float) -> Answer | None:
        confirmed = self.known_good.confirmed_at(domain)
        if confirmed is not None:
            self.known_good.record_mail(domain, now)
            self._refreshed_without_mail.discard(domain)
            age = now - confirmed
            if age < self.times.allow_ttl and confirmed >= self._fresh_since:
                return Answer(Verdict.ALLOW, "platform says yes", "memory", age)
            if age < self.times.known_good:  # stale-while-revalidate
                self._refresh(domain, now)
                return Answer(Verdict.ALLOW, "platform said yes", "known good", age)
        denied_for = self.denied.age(domain, self.times.deny_ttl, now)
        if denied_for is not None:
            return Answer(Verdict.DENY, "platform says no", "memory", denied_for)
        return None

    def _refresh(self, domain: str, now: float) -> bool:
        """Start a lookup for which no request waits; return False if there must be none now."""
        if (
            domain in self._lookups
            or not self.known_good.may_refresh(domain, now)
            or not self._throttle.reserve_refresh(now)
        ):
            return False
        self._start_lookup(domain, LookupKind.REFRESH)
        return True

    def _refresh_denied(self, now: float) -> None:
        for domain in self.known_good.due_denied(now):
            self._refresh(domain, now)

    def _start_lookup(self, domain: str, kind: LookupKind) -> asyncio.Task[Answer]:
        self._throttle.in_flight[kind] += 1
        lookup = asyncio.create_task(self._run_lookup(domain, kind))
        self._lookups[domain] = lookup
        return lookup

    async def _wait_for(self, lookup: asyncio.Task[Answer], domain: str) -> Answer:
        # Unlike wait_for(), wait() does not cancel the lookup at the deadline, or with this task.
        done, _ = await asyncio.wait({lookup}, timeout=ANSWER_SECONDS)
        if done:
            return self.count(lookup.result())
        reason = f"no answer within {ANSWER_SECONDS:g} s"
        answer = Answer(Verdict.DEFER, reason, "deadline")
        logger.info("%s", _log_line(domain, answer))
        return self.count(answer)

    async def _run_lookup(self, domain: str, kind: LookupKind) -> Answer:
        started = self._clock()
        try:
            outcome = await self._lookup(domain, kind)
        except Exception:
            logger.exception("the lookup of %s failed unexpectedly", domain)
            outcome = Outcome(Verdict.DEFER, UNEXPECTED_ERROR.reason, "error")
        finally:
            self._throttle.in_flight[kind] -= 1
        now = self._clock()
        if outcome.verdict is Verdict.ALLOW:
            self._throttle.refund(kind)
        if self._lookups.get(domain) is asyncio.current_task():
            del self._lookups[domain]
            answer = self._record_outcome(domain, outcome, now)
            self._throttle.breaker.health.lookup_seconds = now - started
        else:
            answer = Answer(Verdict.DEFER, "asked before things changed", "platform")
        if kind is LookupKind.REFRESH:
            # Before mail for other known-good domains takes the place that has become free.
            self._refresh_denied(now)
        # Refreshes that change nothing would fill the log.
        routine = kind is LookupKind.REFRESH and outcome.verdict is not Verdict.DENY
        logger.log(
            logging.DEBUG if routine else logging.INFO,
            "%s ms=%.0f",
            _log_line(domain, answer),
            (now - started) * 1000,
        )
        return answer

    def _record_outcome(self, domain: str, outcome: Outcome, now: float) -> Answer:
        """Cache an outcome, and return the answer that follows from it."""
        breaker = self._throttle.breaker
        if outcome.verdict is Verdict.DEFER:
            breaker.record_failure(outcome.reason, outcome.kind == "key_refused", now)
            if self.known_good.confirmed_at(domain) is not None:
                self.known_good.record_failed_refresh(domain, now)
        else:
            breaker.record_success(now)
            self.listed.discard(domain)
        without_mail = domain in self._refreshed_without_mail
        self._refreshed_without_mail.discard(domain)
        if outcome.verdict is Verdict.ALLOW:
            self._record_confirmation(domain, now, without_mail)
        elif outcome.verdict is Verdict.DENY and (answer := self._record_denial(domain, now)):
            return answer
        return Answer(outcome.verdict, outcome.reason, "platform")

    def _record_confirmation(self, domain: str, now: float, without_mail: bool) -> None:
        mailed = self.known_good.confirm_without_mail(domain, now) if without_mail else None
        self._stores.confirmed.save(domain)
        if mailed is not None:
            self._stores.mailed.save(domain, now - mailed)
            return
        if self.known_good.is_unused(domain):
            self._stores.mailed.delete(domain)
        self._remove_evicted(self.known_good.confirm(domain, now))

    def _record_denial(self, domain: str, now: float) -> Answer | None:
        """Record a denial; return the answer if the domain stays allowed for now."""
        times = self.times
        confirmed = self.known_good.confirmed_at(domain)
        if confirmed is not None and now - confirmed < times.known_good and times.deny_grace:
            interval = min(times.deny_ttl, times.deny_grace / DENIALS_TO_COUNT)
            next_lookup = now + max(interval, MIN_DENIAL_INTERVAL_SECONDS)
            max_gap = GAP_LOOKUPS * max(interval, MIN_GAP_LOOKUP_SECONDS)
            denials = self.known_good.record_denial(domain, now, next_lookup, max_gap)
            seconds = now - denials.first
            if denials.number < DENIALS_TO_COUNT or seconds < times.deny_grace:
                reason = f"platform says no, {denials.number} times in {seconds:.0f} s:"
                reason += f" counts from {DENIALS_TO_COUNT} times in {times.deny_grace:g} s on"
                return Answer(Verdict.ALLOW, reason, "known good", now - confirmed)
        if confirmed is not None:
            self._remove(domain)
        self.denied.add(domain, now)
        return None

    def _remove_evicted(self, domains: list[str]) -> None:
        """Remove evicted domains from the disk, too, and log the first time that this happens."""
        for domain in domains:
            self._remove(domain)
        if domains and not self._is_full:
            self._is_full = True
            logger.warning(
                "no room for more than %d known-good domains: domains without mail are evicted"
                " first, and looked up again when mail comes for them",
                len(self.known_good),
            )

    def _remove(self, domain: str) -> bool:
        """Remove a known-good domain from the cache and the disk; return whether it was cached."""
        self._stores.confirmed.delete(domain)
        self._stores.mailed.delete(domain)
        return self.known_good.remove(domain)


def _log_line(domain: str, answer: Answer) -> str:
    reason = json.dumps(answer.reason)
    source = answer.source.replace(" ", "-")
    return f"verdict={answer.verdict.value} domain={domain} source={source} reason={reason}"
