"""The replies to requests: Postfix's policy requests, and those of operators."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from functools import partial
from typing import Any

from mx_validator.decider import Decider
from mx_validator.domain import MalformedDomainError, normalise, recipient_domain
from mx_validator.model import UNEXPECTED_ERROR, Answer, Verdict
from mx_validator.protocol import Request, RequestType, format_attributes
from mx_validator.queue_space import QueueSpace
from mx_validator.status import Status
from mx_validator.transactions import Transactions

# Actions of access(5). DENY is left to the restriction that follows, reject_unauth_destination, so
# that the refusal has Postfix's own text. X.4.3: the routing server does not answer (RFC 3463).
_ACCESS_REPLIES = {
    Verdict.ALLOW: format_attributes({"action": "OK"}),
    Verdict.DENY: format_attributes({"action": "DUNNO"}),
    Verdict.DEFER: format_attributes(
        {"action": "451 4.4.3 This domain cannot be checked right now, please try again later"}
    ),
}

# Postfix's own text when the disk is full.
_QUEUE_FULL = format_attributes({"action": "452 4.3.1 Insufficient system storage"})

# RFC 5321 4.5.3.1.10: after a 452 the sender sends to this recipient in another transaction.
_OTHER_TRANSACTION = format_attributes(
    {
        "action": "452 4.5.3 This may differ from an earlier recipient in case only, send to it in"
        " a transaction of its own"
    }
)

Reply = bytes | Coroutine[Any, Any, bytes]

logger = logging.getLogger(__name__)


class PolicyService:
    """Replies to requests with the answers of the decider."""

    def __init__(
        self, decider: Decider, read_status: Callable[[], Status], queue_space: QueueSpace
    ) -> None:
        self._decider = decider
        self._read_status = read_status
        self._queue_space = queue_space
        self._transactions = Transactions()

    def respond(self, request: Request) -> Reply:
        """Return the reply, or a coroutine for it if a lookup is needed first."""
        kind, subject, _, _ = request
        if kind is RequestType.ACCESS:
            reply = partial(self._access_reply, request)
            return self._reply_with_answer(reply, recipient_domain, subject)
        if kind is RequestType.CHECK:
            return self._reply_with_answer(_check_reply, _domain, subject)
        if kind is RequestType.FORGET:
            return self._forget(subject)
        return format_attributes({"status": json.dumps(asdict(self._read_status()))})

    def _reply_with_answer(
        self, reply: Callable[[Answer], bytes], domain_of: Callable[[str], str], subject: str
    ) -> Reply:
        try:
            answer = self._decider.decide(domain_of(subject))
        except MalformedDomainError as error:
            # The subject is not logged: what looks like a domain may be part of a local part.
            logger.info('verdict=DENY source=malformed reason="%s"', error)
            answer = self._decider.count(Answer(Verdict.DENY, str(error), "malformed"))
        except Exception:
            logger.exception("a request could not be answered")
            answer = UNEXPECTED_ERROR
        return reply(answer) if isinstance(answer, Answer) else _reply_later(reply, answer)

    def _access_reply(self, request: Request, answer: Answer) -> bytes:
        _, recipient, instance, begun = request
        if answer.verdict is Verdict.ALLOW:
            if self._queue_space.is_short:
                return _QUEUE_FULL
            if not self._transactions.admit(instance, begun, recipient):
                return _OTHER_TRANSACTION
        return _ACCESS_REPLIES[answer.verdict]

    def _forget(self, subject: str) -> bytes:
        try:
            domain = _domain(subject)
        except MalformedDomainError as error:
            return format_attributes({"result": "malformed", "reason": str(error)})
        known = self._decider.forget(domain)
        logger.info("forgotten on request: %s, which was %sknown", domain, "" if known else "not ")
        return format_attributes({"result": "forgotten" if known else "unknown"})


def _domain(subject: str) -> str:
    """Return the domain in an operator's request, which names it or an address there."""
    return recipient_domain(subject) if "@" in subject else normalise(subject)


async def _reply_later(
    reply: Callable[[Answer], bytes], answer: Coroutine[Any, Any, Answer]
) -> bytes:
    try:
        return reply(await answer)
    except Exception:
        logger.exception("a request could not be answered")
        return reply(UNEXPECTED_ERROR)


def _check_reply(answer: Answer) -> bytes:
    return format_attributes(
        {
            "verdict": answer.verdict.value,
            "reason": answer.reason,
            "source": answer.source,
            "age_seconds": f"{answer.age_seconds:.0f}",
        }
    )
