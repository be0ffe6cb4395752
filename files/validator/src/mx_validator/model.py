"""The types that the other modules share: what is decided, and what is asked. No I/O here."""

from __future__ import annotations

import enum
from typing import Literal, NamedTuple


class Verdict(enum.Enum):
    """ALLOW: the platform owns the domain. DENY: it said that it does not. DEFER: not known now."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    DEFER = "DEFER"


class LookupKind(enum.Enum):
    """Why the platform is asked. Each kind has its own limits, so that none starves another."""

    UNKNOWN = "unknown"  # a sender waits for the answer
    LISTED = "listed"  # a sender waits, and the platform's list of domains names the domain
    REFRESH = "refresh"  # of a known-good domain; no sender waits


OutcomeKind = Literal[
    "allow",
    "deny",
    "key_refused",
    "http_error",  # a status code that is no answer to the question
    "no_verdict",  # a status code that can be an answer, with a body that is none
    "timeout",
    "unreachable",
    "tls",
    "error",  # an error of the daemon itself
]


class Outcome(NamedTuple):
    """The result of one lookup at the platform."""

    verdict: Verdict
    reason: str
    kind: OutcomeKind


Source = Literal[
    "malformed",  # the recipient has no valid domain
    "memory",  # a fresh entry of the cache
    "known good",  # a stale entry of the known-good cache
    "platform",  # a lookup
    "limit",  # the rate limit or the circuit breaker refused the lookup
    "deadline",  # the lookup took too long
    "error",  # an error of the daemon itself
]


class Answer(NamedTuple):
    """The answer to a request: the verdict, its reason for the operator, its source and age."""

    verdict: Verdict
    reason: str
    source: Source
    age_seconds: float = 0.0


UNEXPECTED_ERROR = Answer(Verdict.DEFER, "unexpected error, see the log", "error")
