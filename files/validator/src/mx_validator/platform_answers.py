"""What the HTTP responses of the platform mean. No I/O here."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mx_validator.domain import MalformedDomainError, normalise
from mx_validator.model import Outcome, Verdict

MAX_LISTED_DOMAINS = 100_000  # about 130 bytes each, until the first lookup of the domain


def parse_check(status: int, body: bytes) -> Outcome:
    """Return the outcome of a lookup. Only two forms of response are a verdict."""
    if status == 200:
        if _is_success(_parse_object(body)):
            return Outcome(Verdict.ALLOW, "platform says yes", "allow")
        return Outcome(Verdict.DEFER, "platform answered 200 without Success: true", "no_verdict")
    if status == 500:
        # This body is the platform's "not mine"; with every other the platform itself has failed.
        if body.strip(b" \t\r\n") == b"{}":
            return Outcome(Verdict.DENY, "platform says no", "deny")
        return Outcome(
            Verdict.DEFER, "platform answered 500 with something else than {}", "no_verdict"
        )
    if status in {401, 403}:
        return Outcome(Verdict.DEFER, f"API key refused ({status})", "key_refused")
    return Outcome(Verdict.DEFER, f"platform answered {status}", "http_error")


def parse_list(status: int, body: bytes) -> frozenset[str] | Outcome:
    """Return the domains of the platform's list in normal form, or the reason why there is none.

    Entries that are no domain names are ignored, and so are those beyond `MAX_LISTED_DOMAINS`.
    """
    if status != 200:
        return parse_check(status, b"")
    answer = _parse_object(body)
    domains = answer.get("Domains")
    if isinstance(domains, dict):  # PHP writes a list with gaps in its keys as an object
        domains = [*domains.values()]
    if not _is_success(answer) or not isinstance(domains, list):
        return Outcome(Verdict.DEFER, "platform answered 200 without a list", "no_verdict")
    return frozenset(itertools.islice(_normalised(domains), MAX_LISTED_DOMAINS))


def _normalised(names: Iterable[object]) -> Iterator[str]:
    for name in names:
        if isinstance(name, str):
            with contextlib.suppress(MalformedDomainError):
                yield normalise(name)


def _is_success(answer: dict[str, Any]) -> bool:
    return answer.get("Success") is True


def _parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; an empty one if the body is anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
