"""From a request to the bytes of its reply."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from mx_validator.domain import MalformedDomainError, normalise, recipient_domain
from mx_validator.protocol import AccessRequest, Request, format_attributes
from mx_validator.verdict import UNEXPECTED, Answer, Decider, Verdict

# Actions of access(5). DENY is left to the restriction that follows, reject_unauth_destination, so
# that the refusal is in Postfix's own words. X.4.3: the routing server does not answer (RFC 3463).
_ACCESS_REPLIES = {
    Verdict.ALLOW: format_attributes({"action": "OK"}),
    Verdict.DENY: format_attributes({"action": "DUNNO"}),
    Verdict.DEFER: format_attributes(
        {"action": "451 4.4.3 This domain cannot be checked right now, please try again later"}
    ),
}

logger = logging.getLogger(__name__)


class Responder:
    """Answers requests with what the decider says."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider

    def respond(self, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
        """Return the reply, or a coroutine that will if the platform has to be asked first."""
        try:
            domain = _domain(request)
            answer = self._decider.decide_now(domain)
        except MalformedDomainError as error:
            # What was asked is not logged: what looks like a domain may be part of a local part.
            logger.info('verdict=DENY source=malformed reason="%s"', error)
            answer = Answer(Verdict.DENY, str(error), "malformed")
        except Exception:
            logger.exception("a request could not be answered")
            answer = UNEXPECTED
        return self._respond_later(request, domain) if answer is None else _reply(request, answer)

    async def _respond_later(self, request: Request, domain: str) -> bytes:
        try:
            answer = await self._decider.decide(domain)
        except Exception:
            logger.exception("a request about %s could not be answered", domain)
            answer = UNEXPECTED
        return _reply(request, answer)


def _domain(request: Request) -> str:
    if isinstance(request, AccessRequest):
        return recipient_domain(request.recipient)
    return normalise(request.domain)


def _reply(request: Request, answer: Answer) -> bytes:
    if isinstance(request, AccessRequest):
        return _ACCESS_REPLIES[answer.verdict]
    return format_attributes(
        {
            "verdict": answer.verdict.value,
            "reason": answer.reason,
            "source": answer.source,
            "age_seconds": f"{answer.age_seconds:.0f}",
        }
    )
