"""What the platform's HTTP answers mean. No I/O here."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mx_validator.decider import Outcome, Verdict
from mx_validator.domain import MalformedDomainError, normalise

MAX_LISTED_DOMAINS = 100_000  # about 130 bytes each, until it has had its first question


def judge(status: int, body: bytes) -> Outcome:
    """Return what an answer about a domain means. Only two shapes are a verdict."""
    if status == 200:
        if _says_success(_object(body)):
            return Outcome(Verdict.ALLOW, "platform says yes", "allow")
        return Outcome(Verdict.DEFER, "platform answered 200 without Success: true", "no_verdict")
    if status == 500:
        # Precisely this is the platform's "not mine"; every other 500 is an accident of its own.
        if body.strip(b" \t\r\n") == b"{}":
            return Outcome(Verdict.DENY, "platform says no", "deny")
        return Outcome(
            Verdict.DEFER, "platform answered 500 with something else than {}", "no_verdict"
        )
    if status in {401, 403}:
        return Outcome(Verdict.DEFER, f"API key refused ({status})", "key_refused")
    return Outcome(Verdict.DEFER, f"platform answered {status}", "http_error")


def read_list(status: int, body: bytes) -> frozenset[str] | Outcome:
    """Return the domains of the platform's list in their normal form, or why there is none.

    What is no domain name is left out, and so is what is beyond `MAX_LISTED_DOMAINS`.
    """
    if status != 200:
        return judge(status, b"")
    answer = _object(body)
    domains = answer.get("Domains")
    if isinstance(domains, dict):  # so PHP writes a list from which something was taken out
        domains = [*domains.values()]
    if not _says_success(answer) or not isinstance(domains, list):
        return Outcome(Verdict.DEFER, "platform answered 200 without a list", "no_verdict")
    return frozenset(itertools.islice(_normalised(domains), MAX_LISTED_DOMAINS))


def _normalised(names: Iterable[object]) -> Iterator[str]:
    for name in names:
        if isinstance(name, str):
            with contextlib.suppress(MalformedDomainError):
                yield normalise(name)


def _says_success(answer: dict[str, Any]) -> bool:
    return answer.get("Success") is True


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; an empty one if it is anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
