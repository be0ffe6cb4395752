"""What Postfix is told about a domain: from memory at once, else by asking the platform.

Any doubt is DEFER, never DENY: a sender tries again after a 451, and gives up after a 554.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

# Under the 10 s that Postfix is configured to wait, with time left for a busy host.
ANSWER_SECONDS = 8.0
# About 250 bytes each: both memories together take 50 MB when full.
ALLOW_MEMORY_DOMAINS = 100_000
DENY_MEMORY_DOMAINS = 100_000

logger = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """ALLOW: the platform owns the domain. DENY: it said that it does not. DEFER: not known now."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    DEFER = "DEFER"


Source = Literal["malformed", "memory", "platform", "deadline", "error"]


class Answer(NamedTuple):
    """A verdict with its reason, in words for the operator, and who said so how long ago."""

    verdict: Verdict
    reason: str
    source: Source
    age_seconds: float = 0.0


UNEXPECTED = Answer(Verdict.DEFER, "unexpected error, see the log", "error")

Ask = Callable[[str], Awaitable[Answer]]


class Memory:
    """Domains with one and the same verdict. Drops the least recently used when full."""

    def __init__(self, verdict: Verdict, ttl_seconds: float, max_domains: int) -> None:
        self.ttl_seconds = ttl_seconds
        self._verdict = verdict
        self._max_domains = max_domains
        self._entries: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def recall(self, domain: str, now: float) -> Answer | None:
        """Return what was remembered less than a TTL ago."""
        entry = self._entries.get(domain)
        if entry is None:
            return None
        since, reason = entry
        age = now - since
        if age >= self.ttl_seconds:
            del self._entries[domain]
            return None
        self._entries.move_to_end(domain)
        return Answer(self._verdict, reason, "memory", age)

    def remember(self, domain: str, reason: str, now: float) -> None:
        """Remember a domain from now on."""
        self._entries[domain] = (now, reason)
        self._entries.move_to_end(domain)
        if len(self._entries) > self._max_domains:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


class Decider:
    """Answers about normalised domains. Not thread-safe: belongs to one event loop."""

    def __init__(
        self,
        ask: Ask,
        allow_ttl_seconds: float,
        deny_ttl_seconds: float,
        answer_seconds: float = ANSWER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._answer_seconds = answer_seconds
        self._clock = clock
        # Apart, so that a flood of invented domains cannot push out one that is ours.
        self._allowed = Memory(Verdict.ALLOW, allow_ttl_seconds, ALLOW_MEMORY_DOMAINS)
        self._denied = Memory(Verdict.DENY, deny_ttl_seconds, DENY_MEMORY_DOMAINS)
        self._questions: dict[str, asyncio.Task[Answer]] = {}

    def set_ttls(self, allow_ttl_seconds: float, deny_ttl_seconds: float) -> None:
        """Change how long verdicts are remembered, those already in memory included."""
        self._allowed.ttl_seconds = allow_ttl_seconds
        self._denied.ttl_seconds = deny_ttl_seconds

    def forget(self) -> None:
        """Forget all verdicts, and those that are still on their way."""
        self._allowed.clear()
        self._denied.clear()
        self._questions.clear()

    def decide_now(self, domain: str) -> Answer | None:
        """Return the answer if it is in memory."""
        now = self._clock()
        answer = self._allowed.recall(domain, now) or self._denied.recall(domain, now)
        if answer is not None and logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s", _line(domain, answer))
        return answer

    async def decide(self, domain: str) -> Answer:
        """Return the answer from memory or the platform, or DEFER after the deadline.

        All who ask about a domain at the same time share one question to the platform. It goes on
        when they have left, and its result is remembered for the next.
        """
        answer = self.decide_now(domain)
        if answer is not None:
            return answer
        question = self._questions.get(domain)
        if question is None:
            question = asyncio.create_task(self._question(domain))
            self._questions[domain] = question
        # Unlike wait_for(), wait() leaves the question alone when time is up or the asker is gone.
        done, _ = await asyncio.wait({question}, timeout=self._answer_seconds)
        if done:
            return question.result()
        answer = Answer(Verdict.DEFER, f"no answer within {self._answer_seconds:g} s", "deadline")
        logger.info("%s", _line(domain, answer))
        return answer

    async def _question(self, domain: str) -> Answer:
        began = self._clock()
        try:
            answer = await self._ask(domain)
        except Exception:
            logger.exception("asking the platform about %s failed unexpectedly", domain)
            answer = UNEXPECTED
        now = self._clock()
        logger.info("%s ms=%.0f", _line(domain, answer), (now - began) * 1000)
        # Another question, or none, stands there after forget(): then this answer is outdated.
        if self._questions.get(domain) is asyncio.current_task():
            del self._questions[domain]
            if answer.verdict is Verdict.ALLOW:
                self._allowed.remember(domain, answer.reason, now)
            elif answer.verdict is Verdict.DENY:
                self._denied.remember(domain, answer.reason, now)
        return answer


def _line(domain: str, answer: Answer) -> str:
    reason = json.dumps(answer.reason)
    return f"verdict={answer.verdict.value} domain={domain} source={answer.source} reason={reason}"
