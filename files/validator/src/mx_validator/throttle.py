"""Protects the platform: a rate limit, a limit of concurrent lookups, and a circuit breaker.

All times are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mx_validator.model import LookupKind

FAILURES_TO_OPEN = 5  # lookups in a row without a verdict
PROBE_SECONDS = 5.0  # between two lookups of a kind while the circuit breaker is open
LOG_INTERVAL_SECONDS = 60.0  # at most one log line about deferred domains in this time

logger = logging.getLogger(__name__)

# Concurrent lookups, including those that wait for a thread. With more, a sender that waits would
# hardly get its answer in time from a slow platform, and each lookup occupies one of Postfix's
# processes, most of which are needed for known-good domains.
MAX_IN_FLIGHT = {LookupKind.UNKNOWN: 64, LookupKind.LISTED: 64, LookupKind.REFRESH: 4}


class TokenBucket:
    """A rate limit: `rate` tokens a second, and up to `burst` at once after a quiet time."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._updated = now

    def configure(self, rate: float, burst: float) -> None:
        """Change both; the tokens that are left stay, up to the new burst."""
        self.rate = rate
        self._burst = burst

    def take(self, now: float) -> bool:
        """Take a token; return False if there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self.rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Give back a token that was taken."""
        self._tokens = min(self._burst, self._tokens + 1)


@dataclass
class Health:
    """The health of the platform, as the lookups so far have shown it."""

    failures: int = 0  # in a row
    failing_since: float | None = None  # None: the last lookup gave a verdict, or there was none
    last_error: str = ""
    key_refused: bool = False  # by the last lookup
    last_verdict: float | None = None
    lookup_seconds: float | None = None  # the duration of the last lookup

    @property
    def is_up(self) -> bool | None:
        """Whether the last lookup gave a verdict; None if there was none."""
        if self.failing_since is not None:
            return False
        return None if self.last_verdict is None else True


class CircuitBreaker:
    """Opens after repeated failures; while open, it allows a lookup from time to time."""

    def __init__(self, key_file: str) -> None:
        self._key_file = key_file
        self._is_open = False
        self._next_probe: dict[LookupKind, float] = {}
        self.health = Health()

    @property
    def is_open(self) -> bool:
        """Whether lookups are held back."""
        return self._is_open

    def reset(self, key_file: str) -> None:
        """Close, and start with a new health: the platform or the key is another."""
        self._key_file = key_file
        self._is_open = False
        self.health = Health()

    def allows(self, kind: LookupKind, now: float) -> bool:
        """Whether a lookup may start."""
        return not self._is_open or now >= self._next_probe.get(kind, 0)

    def record_start(self, kind: LookupKind, now: float) -> None:
        """Record that a lookup starts."""
        self._next_probe[kind] = now + PROBE_SECONDS

    def record_success(self, now: float) -> None:
        """Record a lookup that gave a verdict."""
        health = self.health
        if health.failing_since is not None and (self._is_open or health.key_refused):
            seconds = now - health.failing_since
            logger.info("the platform gives verdicts again, after %.0f s without", seconds)
        self._is_open = False
        self.health = Health(last_verdict=now)

    def record_failure(self, reason: str, key_refused: bool, now: float) -> None:
        """Record a lookup that gave no verdict."""
        health = self.health
        if key_refused and not health.key_refused:
            logger.error(
                "%s: put the right one into %s and send this process a SIGHUP; until then only"
                " known-good domains are allowed, all others deferred",
                reason,
                self._key_file,
            )
        health.failures += 1
        health.last_error = reason
        health.key_refused = key_refused
        if health.failing_since is None:
            health.failing_since = now
        if health.failures >= FAILURES_TO_OPEN and not self._is_open:
            self._is_open = True
            self._next_probe = dict.fromkeys(LookupKind, now + PROBE_SECONDS)
            if not key_refused:
                logger.warning(
                    "the platform gives no verdict (%s): see that it answers this host; until then"
                    " only known-good domains are allowed, all others deferred",
                    reason,
                )


class Throttle:
    """All limits together: it decides which lookups may start, and does none itself."""

    def __init__(self, bucket: TokenBucket, breaker: CircuitBreaker) -> None:
        self.bucket = bucket
        self.breaker = breaker
        self.in_flight = dict.fromkeys(LookupKind, 0)
        self._refused = 0
        self._last_logged: float | None = None

    def reserve_lookup(self, kind: LookupKind, now: float) -> str | None:
        """Reserve the first lookup of a domain. Return why there must be none now, or None.

        The rate limit does not apply to domains on the platform's list.
        """
        if not self.breaker.allows(kind, now):
            return f"platform gives no verdict: {self.breaker.health.last_error}"
        if self.in_flight[kind] >= MAX_IN_FLIGHT[kind]:
            reason = f"{MAX_IN_FLIGHT[kind]} lookups at the platform in flight"
            return self._log_refusal(reason, now)
        if kind is LookupKind.UNKNOWN and not self.bucket.take(now):
            return self._log_refusal(f"over {self.bucket.rate:g} unknown domains a second", now)
        self.breaker.record_start(kind, now)
        return None

    def refund(self, kind: LookupKind) -> None:
        """Give the token of a confirmed domain back: the rate limit is for other domains."""
        if kind is LookupKind.UNKNOWN:
            self.bucket.give_back()

    def reserve_refresh(self, now: float) -> bool:
        """Reserve a refresh of a known-good domain; return False if there must be none now."""
        if self.in_flight[LookupKind.REFRESH] >= MAX_IN_FLIGHT[LookupKind.REFRESH]:
            return False
        if not self.breaker.allows(LookupKind.REFRESH, now):
            return False
        self.breaker.record_start(LookupKind.REFRESH, now)
        return True

    def _log_refusal(self, reason: str, now: float) -> str:
        """Log that lookups are refused, but not each one."""
        self._refused += 1
        if self._last_logged is None or now - self._last_logged >= LOG_INTERVAL_SECONDS:
            logger.warning(
                "unknown domains are deferred to protect the platform, %d since the last such line"
                " (%s)",
                self._refused,
                reason,
            )
            self._last_logged = now
            self._refused = 0
        return reason
