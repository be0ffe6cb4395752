"""From a request to the bytes of its reply."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from functools import partial
from typing import Any

from mx_validator.decider import UNEXPECTED, Answer, Decider, Verdict
from mx_validator.domain import MalformedDomainError, normalise, recipient_domain
from mx_validator.protocol import Request, RequestType, format_attributes
from mx_validator.queue_space import Room
from mx_validator.status import Status
from mx_validator.transactions import Transactions

# Actions of access(5). DENY is left to the restriction that follows, reject_unauth_destination, so
# that the refusal is in Postfix's own words. X.4.3: the routing server does not answer (RFC 3463).
_ACCESS_REPLIES = {
    Verdict.ALLOW: format_attributes({"action": "OK"}),
    Verdict.DENY: format_attributes({"action": "DUNNO"}),
    Verdict.DEFER: format_attributes(
        {"action": "451 4.4.3 This domain cannot be checked right now, please try again later"}
    ),
}

_ACCESS = RequestType.ACCESS
_ALLOW = _ACCESS_REPLIES[Verdict.ALLOW]

Reply = bytes | Coroutine[Any, Any, bytes]

# Postfix's own words when the disk is full.
_NO_ROOM = format_attributes({"action": "452 4.3.1 Insufficient system storage"})

# RFC 5321 4.5.3.1.10: after a 452 the sender sends to this recipient in another transaction.
_APART = format_attributes(
    {
        "action": "452 4.5.3 This may differ from an earlier recipient in case only, send to it in"
        " a transaction of its own"
    }
)

logger = logging.getLogger(__name__)


class Responder:
    """Answers Postfix and operators with what the decider knows."""

    def __init__(self, decider: Decider, look: Callable[[], Status], room: Room) -> None:
        self._decider = decider
        self._look = look
        self._room = room
        self._allows_at_once = decider.allows_at_once
        self._admit = Transactions().admit

    def respond(self, request: Request) -> Reply:
        """Return the reply, or a coroutine that will if the platform has to be asked first."""
        kind, subject, instance, begun = request
        if kind is _ACCESS:
            if self._room.is_short:
                return self._respond_with(_access_reply_without_room, recipient_domain, subject)
            _, at, domain = subject.rpartition("@")
            # Nearly all mail is for what is known, and that is in normal form.
            if at and self._allows_at_once(domain):
                return _ALLOW if self._admit(instance, begun, subject) else _APART
            return self._respond_with(
                partial(self._access_reply, request), recipient_domain, subject
            )
        if kind is RequestType.CHECK:
            return self._respond_with(_check_reply, _domain, subject)
        if kind is RequestType.FORGET:
            return self._forget(subject)
        return format_attributes({"status": json.dumps(asdict(self._look()))})

    def _respond_with(
        self, reply: Callable[[Answer], bytes], domain_of: Callable[[str], str], name: str
    ) -> Reply:
        try:
            answer = self._decider.decide(domain_of(name))
        except MalformedDomainError as error:
            # What was asked is not logged: what looks like a domain may be part of a local part.
            logger.info('verdict=DENY source=malformed reason="%s"', error)
            answer = self._decider.count(Answer(Verdict.DENY, str(error), "malformed"))
        except Exception:
            logger.exception("a request could not be answered")
            answer = UNEXPECTED
        return reply(answer) if isinstance(answer, Answer) else _reply_later(reply, answer)

    def _access_reply(self, request: Request, answer: Answer) -> bytes:
        _, recipient, instance, begun = request
        if answer.verdict is Verdict.ALLOW and not self._admit(instance, begun, recipient):
            return _APART
        return _ACCESS_REPLIES[answer.verdict]

    def _forget(self, name: str) -> bytes:
        try:
            domain = _domain(name)
        except MalformedDomainError as error:
            return format_attributes({"result": "malformed", "reason": str(error)})
        known = self._decider.forget(domain)
        logger.info("forgotten on request: %s, which was %sknown", domain, "" if known else "not ")
        return format_attributes({"result": "forgotten" if known else "unknown"})


def _domain(name: str) -> str:
    """Return the domain that an operator means by its name or by an address there."""
    return recipient_domain(name) if "@" in name else normalise(name)


async def _reply_later(
    reply: Callable[[Answer], bytes], answer: Coroutine[Any, Any, Answer]
) -> bytes:
    try:
        return reply(await answer)
    except Exception:
        logger.exception("a request could not be answered")
        return reply(UNEXPECTED)


def _access_reply_without_room(answer: Answer) -> bytes:
    return _NO_ROOM if answer.verdict is Verdict.ALLOW else _ACCESS_REPLIES[answer.verdict]


def _check_reply(answer: Answer) -> bytes:
    return format_attributes(
        {
            "verdict": answer.verdict.value,
            "reason": answer.reason,
            "source": answer.source,
            "age_seconds": f"{answer.age_seconds:.0f}",
        }
    )
