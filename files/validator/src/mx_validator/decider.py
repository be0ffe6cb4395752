"""What Postfix is told about a domain: from memory at once, else by asking the platform.

Any doubt is DEFER, never DENY: a sender tries again after a 451, and gives up after a 554. A domain
that the platform has confirmed stays allowed while the platform cannot say, and until it has denied
the domain for a while.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from mx_validator.cache import Denied, KnownGood
from mx_validator.throttle import Kind, Limits

# Under the 10 s that Postfix is configured to wait, with time left for a busy host.
ANSWER_SECONDS = 8.0
# A known-good domain is denied at least so many times before it counts.
DENIALS_TO_COUNT = 5
DENIED_AGAIN_SECONDS = 1.0  # at least, until it is asked about again
# Two denials are in a row if there was no time for so many questions between them. In a longer gap
# nobody knows what the platform would have said.
GAP_QUESTIONS = 3
GAP_QUESTION_SECONDS = 10.0  # at least for each of them: one may take 12, and waits for its turn
# After this part of its time a known-good domain is asked about even if no mail comes for it.
REFRESH_UNUSED_AFTER = 0.5
# But no more when there has been no mail for it for so long: then it ends with its time.
MAIL_SECONDS = 28 * 86400.0

logger = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """ALLOW: the platform owns the domain. DENY: it said that it does not. DEFER: not known now."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    DEFER = "DEFER"


OutcomeKind = Literal[
    "allow",
    "deny",
    "key_refused",
    "http_error",  # a status that has no meaning here
    "no_verdict",  # one that has, but not with this body
    "timeout",
    "unreachable",
    "tls",
    "error",  # our own
]
Source = Literal["malformed", "memory", "known good", "platform", "limit", "deadline", "error"]


class Answer(NamedTuple):
    """A verdict with its reason, in words for the operator, and who said so how long ago."""

    verdict: Verdict
    reason: str
    source: Source
    age_seconds: float = 0.0


class Outcome(NamedTuple):
    """What one question to the platform came to."""

    verdict: Verdict
    reason: str
    kind: OutcomeKind


UNEXPECTED = Answer(Verdict.DEFER, "unexpected error, see the log", "error")

_FRESH: tuple[str, Source] = (Verdict.ALLOW.value, "memory")

Ask = Callable[[str, Kind], Awaitable[Outcome]]


class Keeper(Protocol):
    """Keeps domains and a moment of each beyond the end of the process."""

    def keep(self, domain: str, age_seconds: float = 0.0) -> None:
        """Keep a domain with a moment so long ago."""

    def drop(self, domain: str) -> None:
        """Keep a domain no longer."""


class Disk(NamedTuple):
    """What is kept of known-good domains."""

    confirmed: Keeper  # all, and when the platform last confirmed them
    mailed: Keeper  # the unused ones among them, and when mail last came for them


@dataclass(frozen=True)
class Times:
    """How long what the platform said counts, in seconds."""

    allow_ttl: float
    deny_ttl: float
    known_good: float
    deny_grace: float


class Decider:
    """Answers about normalised domains. Not thread-safe: belongs to one event loop."""

    def __init__(
        self,
        ask: Ask,
        times: Times,
        limits: Limits,
        disk: Disk,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.times = times
        self.known_good = KnownGood()
        self._confirmed_for_mail = self.known_good.confirmed_for_mail
        self.denied = Denied()
        # On the platform's own list, and not asked about yet. That is no verdict.
        self.listed: set[str] = set()
        self.answers: Counter[tuple[str, Source]] = Counter()
        self._ask = ask
        self._limits = limits
        self._disk = disk
        self._clock = clock
        self._fresh_since = float("-inf")
        self._questions: dict[str, asyncio.Task[Answer]] = {}
        self._without_mail: set[str] = set()  # what they are about, if no mail gave occasion
        self._is_full = False

    def load(
        self, ages: Iterable[tuple[str, float]], mail_ages: Mapping[str, float] | None = None
    ) -> None:
        """Take over known-good domains with their ages in seconds, the oldest first.

        `mail_ages` has the seconds since their last mail for those that are unused.
        """
        now = self._clock()
        mailed = {domain: now - age for domain, age in (mail_ages or {}).items()}
        self._displace(self.known_good.load(((domain, now - age) for domain, age in ages), mailed))
        for domain in mailed:
            if self.known_good.confirmed(domain) is None:
                self._disk.mailed.drop(domain)

    def ages(self) -> Iterator[tuple[str, float]]:
        """Yield all known-good domains with their ages in seconds, the oldest first."""
        now = self._clock()
        return ((domain, now - moment) for domain, moment in self.known_good.items())

    def mail_ages(self) -> Iterator[tuple[str, float]]:
        """Yield the unused ones among them, with the seconds since their last mail."""
        now = self._clock()
        return ((domain, now - moment) for domain, moment in self.known_good.mailed())

    def change_platform(self) -> None:
        """Forget what was denied, and ask about each known-good domain at its next mail.

        They stay: most often it is the same platform under another name, or a slip of the pen.
        """
        self._questions.clear()
        self._without_mail.clear()
        self.denied.clear()
        self.listed.clear()
        self.known_good.settle_all()
        self._fresh_since = self._clock()

    def forget(self, domain: str) -> bool:
        """Forget a domain and what is on its way about it; return whether anything was known."""
        self._questions.pop(domain, None)
        self._without_mail.discard(domain)
        self.listed.discard(domain)
        return self._drop(domain) | self.denied.drop(domain)

    def allows_at_once(self, domain: str) -> bool:
        """Whether a domain is known good so freshly that there is nothing else to do.

        The short way of `decide`, for what is asked most; whatever is no normal form is not known.
        """
        confirmed = self._confirmed_for_mail(domain)
        if (
            confirmed is None
            or self._clock() - confirmed >= self.times.allow_ttl
            or confirmed < self._fresh_since
            or logger.isEnabledFor(logging.DEBUG)
        ):
            return False
        self.answers[_FRESH] += 1
        return True

    def decide(self, domain: str) -> Answer | Coroutine[Any, Any, Answer]:
        """Return the answer, or a coroutine that will if the platform has to be asked first.

        All who ask about a domain at the same time share one question to the platform. It goes on
        when they have left, and its result is remembered for the next.
        """
        now = self._clock()
        answer = self._recall(domain, now)
        if answer is None:
            question = self._questions.get(domain)
            if question is None:
                kind = Kind.LISTED if domain in self.listed else Kind.UNKNOWN
                refusal = self._limits.refuse_first(kind, now)
                if refusal is None:
                    return self._wait_for(self._start(domain, kind), domain)
                answer = Answer(Verdict.DEFER, refusal, "limit")
            else:
                return self._wait_for(question, domain)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", _line(domain, answer))
        return self.count(answer)

    def tend(self) -> None:
        """Do what no mail gives occasion to; to be called about once a second."""
        now = self._clock()
        times = self.times
        health = self._limits.breaker.health
        if health.last_verdict is not None and health.failing_since is None:
            # Not while the platform is silent: nothing could bring back what a wrong clock drops.
            for domain in self.known_good.expired(now - max(times.known_good, times.allow_ttl)):
                self._drop(domain)
        self._refresh_denied(now)
        old = now - max(times.known_good * REFRESH_UNUSED_AFTER, times.allow_ttl)
        for domain in self.known_good.old_due(old, now - MAIL_SECONDS, now):
            if self._refresh(domain, now):
                self._without_mail.add(domain)

    def count(self, answer: Answer) -> Answer:
        """Count an answer, and return it."""
        self.answers[answer.verdict.value, answer.source] += 1
        return answer

    def _recall(self, domain: str, now: float) -> Answer | None:
        confirmed = self.known_good.confirmed(domain)
        if confirmed is not None:
            self.known_good.mail(domain, now)
            self._without_mail.discard(domain)
            age = now - confirmed
            if age < self.times.allow_ttl and confirmed >= self._fresh_since:
                return Answer(Verdict.ALLOW, "platform says yes", "memory", age)
            if age < self.times.known_good:
                self._refresh(domain, now)
                return Answer(Verdict.ALLOW, "platform said yes", "known good", age)
        denied_for = self.denied.age(domain, self.times.deny_ttl, now)
        if denied_for is not None:
            return Answer(Verdict.DENY, "platform says no", "memory", denied_for)
        return None

    def _refresh(self, domain: str, now: float) -> bool:
        """Ask about a known-good domain behind everybody's back; return whether that can be now."""
        if (
            domain in self._questions
            or not self.known_good.may_refresh(domain, now)
            or not self._limits.permit_refresh(now)
        ):
            return False
        self._start(domain, Kind.REFRESH)
        return True

    def _refresh_denied(self, now: float) -> None:
        for domain in self.known_good.denied_due(now):
            self._refresh(domain, now)

    def _start(self, domain: str, kind: Kind) -> asyncio.Task[Answer]:
        self._limits.under_way[kind] += 1
        question = asyncio.create_task(self._question(domain, kind))
        self._questions[domain] = question
        return question

    async def _wait_for(self, question: asyncio.Task[Answer], domain: str) -> Answer:
        # Unlike wait_for(), wait() leaves the question alone when time is up or the asker is gone.
        done, _ = await asyncio.wait({question}, timeout=ANSWER_SECONDS)
        if done:
            return self.count(question.result())
        reason = f"no answer within {ANSWER_SECONDS:g} s"
        answer = Answer(Verdict.DEFER, reason, "deadline")
        logger.info("%s", _line(domain, answer))
        return self.count(answer)

    async def _question(self, domain: str, kind: Kind) -> Answer:
        began = self._clock()
        try:
            outcome = await self._ask(domain, kind)
        except Exception:
            logger.exception("asking the platform about %s failed unexpectedly", domain)
            outcome = Outcome(Verdict.DEFER, UNEXPECTED.reason, "error")
        finally:
            self._limits.under_way[kind] -= 1
        now = self._clock()
        if outcome.verdict is Verdict.ALLOW:
            self._limits.confirmed(kind)
        if self._questions.get(domain) is asyncio.current_task():
            del self._questions[domain]
            answer = self._learn(domain, outcome, now)
        else:
            answer = Answer(Verdict.DEFER, "asked before things changed", "platform")
        if kind is Kind.REFRESH:
            # Now, or the next mail for any other known-good domain takes the place.
            self._refresh_denied(now)
        # Refreshes that change nothing would be most of the log.
        routine = kind is Kind.REFRESH and outcome.verdict is not Verdict.DENY
        logger.log(
            logging.DEBUG if routine else logging.INFO,
            "%s ms=%.0f",
            _line(domain, answer),
            (now - began) * 1000,
        )
        return answer

    def _learn(self, domain: str, outcome: Outcome, now: float) -> Answer:
        """Remember an outcome, and return the answer that follows from it."""
        breaker = self._limits.breaker
        if outcome.verdict is Verdict.DEFER:
            breaker.failed(outcome.reason, outcome.kind == "key_refused", now)
            if self.known_good.confirmed(domain) is not None:
                self.known_good.leave(domain, now)
        else:
            breaker.succeeded(now)
            self.listed.discard(domain)
        without_mail = domain in self._without_mail
        self._without_mail.discard(domain)
        if outcome.verdict is Verdict.ALLOW:
            self._confirm(domain, now, without_mail)
        elif outcome.verdict is Verdict.DENY and (answer := self._deny(domain, now)):
            return answer
        return Answer(outcome.verdict, outcome.reason, "platform")

    def _confirm(self, domain: str, now: float, without_mail: bool) -> None:
        mailed = self.known_good.confirm_unused(domain, now) if without_mail else None
        self._disk.confirmed.keep(domain)
        if mailed is not None:
            self._disk.mailed.keep(domain, now - mailed)
            return
        if self.known_good.is_unused(domain):
            self._disk.mailed.drop(domain)
        self._displace(self.known_good.confirm(domain, now))

    def _displace(self, domains: list[str]) -> None:
        """Keep domains no longer that had to go from memory, and say so once."""
        for domain in domains:
            self._drop(domain)
        if domains and not self._is_full:
            self._is_full = True
            logger.warning(
                "no room for more than %d known-good domains: those without mail go first, and are"
                " asked about again when mail comes",
                len(self.known_good),
            )

    def _drop(self, domain: str) -> bool:
        """Let a domain be known good no longer; return whether it was."""
        self._disk.confirmed.drop(domain)
        self._disk.mailed.drop(domain)
        return self.known_good.drop(domain)

    def _deny(self, domain: str, now: float) -> Answer | None:
        """Remember a denial; return the answer if it does not count yet."""
        times = self.times
        confirmed = self.known_good.confirmed(domain)
        if confirmed is not None and now - confirmed < times.known_good and times.deny_grace:
            pause = min(times.deny_ttl, times.deny_grace / DENIALS_TO_COUNT)
            again = now + max(pause, DENIED_AGAIN_SECONDS)
            max_gap = GAP_QUESTIONS * max(pause, GAP_QUESTION_SECONDS)
            denials = self.known_good.deny(domain, now, again, max_gap)
            seconds = now - denials.first
            if denials.number < DENIALS_TO_COUNT or seconds < times.deny_grace:
                reason = f"platform says no, {denials.number} times in {seconds:.0f} s:"
                reason += f" counts from {DENIALS_TO_COUNT} times in {times.deny_grace:g} s on"
                return Answer(Verdict.ALLOW, reason, "known good", now - confirmed)
        if confirmed is not None:
            self._drop(domain)
        self.denied.add(domain, now)
        return None


def _line(domain: str, answer: Answer) -> str:
    reason = json.dumps(answer.reason)
    source = answer.source.replace(" ", "-")
    return f"verdict={answer.verdict.value} domain={domain} source={source} reason={reason}"
