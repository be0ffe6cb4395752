"""What protects the platform: how often and when it may be asked.

All moments are those of one monotonic clock, in seconds.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass

FAILURES_TO_OPEN = 5  # questions in a row without a verdict
PROBE_SECONDS = 5.0  # between two questions of a kind while the breaker is open
REPORT_SECONDS = 60.0  # at most one line about deferred domains in this time

logger = logging.getLogger(__name__)


class Kind(enum.Enum):
    """Why the platform is asked: each kind has bounds of its own and cannot use up the other's."""

    UNKNOWN = "unknown"  # a sender waits for the answer
    LISTED = "listed"  # a sender waits, and the platform's list has the domain
    REFRESH = "refresh"  # nobody waits: the domain is known good


# Questions at a time, those that wait for a thread included. Behind so many that somebody waits for
# a question would hardly get its answer in time from a slow platform, and each keeps one of
# Postfix's processes, of which most are to be left for known-good domains.
QUESTIONS = {Kind.UNKNOWN: 64, Kind.LISTED: 64, Kind.REFRESH: 4}


class TokenBucket:
    """Lets `rate` a second pass, and up to `burst` at once after a quiet time."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._moment = now

    def configure(self, rate: float, burst: float) -> None:
        """Change both; what has been saved up stays, as far as the new burst allows."""
        self.rate = rate
        self._burst = burst

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._moment) * self.rate)
        self._moment = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Give back a token that was taken."""
        self._tokens = min(self._burst, self._tokens + 1)


@dataclass
class Health:
    """How the platform is, as far as the questions so far tell."""

    failures: int = 0  # in a row
    failing_since: float | None = (
        None  # None: the last question brought a verdict, or there was none
    )
    trouble: str = ""  # the reason of the last failure
    key_refused: bool = False  # by the last answer
    last_verdict: float | None = None


class Breaker:
    """Opens after repeated failures, and then lets a question pass only now and then."""

    def __init__(self, key_file: str) -> None:
        self._key_file = key_file
        self._is_open = False
        self._next_probe: dict[Kind, float] = {}
        self.health = Health()

    @property
    def is_open(self) -> bool:
        """Whether the platform is spared."""
        return self._is_open

    def reset(self, key_file: str) -> None:
        """Begin anew, with another platform or key."""
        self._key_file = key_file
        self._is_open = False
        self.health = Health()

    def permits(self, kind: Kind, now: float) -> bool:
        """Whether a question may be asked."""
        return not self._is_open or now >= self._next_probe.get(kind, 0)

    def begin(self, kind: Kind, now: float) -> None:
        """Count a question that is being asked."""
        self._next_probe[kind] = now + PROBE_SECONDS

    def succeeded(self, now: float) -> None:
        """Count a verdict."""
        health = self.health
        if health.failing_since is not None and (self._is_open or health.key_refused):
            seconds = now - health.failing_since
            logger.info("the platform gives verdicts again, after %.0f s without", seconds)
        self._is_open = False
        self.health = Health(last_verdict=now)

    def failed(self, reason: str, key_refused: bool, now: float) -> None:
        """Count a question that brought no verdict."""
        health = self.health
        if key_refused and not health.key_refused:
            logger.error(
                "%s: put the right one into %s and send this process a SIGHUP; until then only"
                " known-good domains are allowed, all others deferred",
                reason,
                self._key_file,
            )
        health.failures += 1
        health.trouble = reason
        health.key_refused = key_refused
        if health.failing_since is None:
            health.failing_since = now
        if health.failures >= FAILURES_TO_OPEN and not self._is_open:
            self._is_open = True
            self._next_probe = dict.fromkeys(Kind, now + PROBE_SECONDS)
            if not key_refused:
                logger.warning(
                    "the platform gives no verdict (%s): see that it answers this host; until then"
                    " only known-good domains are allowed, all others deferred",
                    reason,
                )


class Limits:
    """All bounds together: asks nothing itself, but says what may be asked now."""

    def __init__(self, bucket: TokenBucket, breaker: Breaker) -> None:
        self.bucket = bucket
        self.breaker = breaker
        self.under_way = dict.fromkeys(Kind, 0)
        self._refused = 0
        self._reported: float | None = None

    def refuse_first(self, kind: Kind, now: float) -> str | None:
        """Return why a domain must not be asked about the first time now; None: it is asked about.

        A domain on the platform's list does not count: made-up ones leave it its question.
        """
        if not self.breaker.permits(kind, now):
            return f"platform gives no verdict: {self.breaker.health.trouble}"
        if self.under_way[kind] >= QUESTIONS[kind]:
            return self._report(f"{QUESTIONS[kind]} questions to the platform under way", now)
        if kind is Kind.UNKNOWN and not self.bucket.take(now):
            return self._report(f"over {self.bucket.rate:g} unknown domains a second", now)
        self.breaker.begin(kind, now)
        return None

    def confirmed(self, kind: Kind) -> None:
        """Count a domain that turned out to be the platform's: only others use the rate up."""
        if kind is Kind.UNKNOWN:
            self.bucket.give_back()

    def permit_refresh(self, now: float) -> bool:
        """Whether a known-good domain may be asked about now; if so, count it as asked."""
        if self.under_way[Kind.REFRESH] >= QUESTIONS[Kind.REFRESH]:
            return False
        if not self.breaker.permits(Kind.REFRESH, now):
            return False
        self.breaker.begin(Kind.REFRESH, now)
        return True

    def _report(self, reason: str, now: float) -> str:
        """Log that domains are deferred to spare the platform, not every time."""
        self._refused += 1
        if self._reported is None or now - self._reported >= REPORT_SECONDS:
            logger.warning(
                "unknown domains are deferred to spare the platform, %d since the last such line"
                " (%s)",
                self._refused,
                reason,
            )
            self._reported = now
            self._refused = 0
        return reason
