from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mx_validator.decider import CacheTimes, Decider, Stores
from mx_validator.model import LookupKind, Outcome, Verdict
from mx_validator.queue_space import QueueSpace
from mx_validator.status import Parts, Status
from mx_validator.store import SqliteStore
from mx_validator.throttle import CircuitBreaker, Throttle, TokenBucket
from support import NullStore
from test_status_text import AWAY, UNASKED, WELL

VERDICTS = {"yes.example": Verdict.ALLOW, "a.example": Verdict.DENY, "b.example": Verdict.DENY}


async def lookup(domain: str, _: LookupKind) -> Outcome:
    verdict = VERDICTS.get(domain, Verdict.DEFER)
    return Outcome(verdict, "platform answered 502", "http_error")


@pytest.fixture
async def parts(tmp_path: Path) -> Parts:
    throttle = Throttle(TokenBucket(1, 10, 0), CircuitBreaker("/etc/key"))
    stores = Stores(NullStore(), NullStore())
    decider = Decider(lookup, CacheTimes(300, 60, 7 * 86400, 900), throttle, stores)
    store = SqliteStore(tmp_path / "known-good.sqlite")
    return Parts(decider, throttle, store, QueueSpace(tmp_path), lambda: 0.25)


async def decide(parts: Parts, domain: str) -> None:
    answer = parts.decider.decide(domain)
    assert not isinstance(answer, tuple)
    await answer


async def test_read(parts: Parts) -> None:
    before = Status.read(parts)
    assert (before.platform_up, before.last_verdict_seconds, before.known_good) == (None, None, 0)
    assert before.oldest_seconds is None
    for domain in VERDICTS:
        await decide(parts, domain)
    well = Status.read(parts)
    assert well.platform_up
    assert (well.known_good, well.denied, well.known_good_days) == (1, 2, 7)
    assert well.lag_seconds == 0.25
    assert well.oldest_seconds is not None
    await decide(parts, "away.example")
    parts.store.save("x.example")
    parts.throttle.in_flight[LookupKind.REFRESH] = 3
    failing = Status.read(parts)
    assert failing.platform_up is False
    assert failing.last_error == "platform answered 502"
    assert failing.failing_seconds is not None
    assert (failing.store_unwritten, failing.lookups_in_flight) == (1, 3)


@pytest.mark.parametrize(
    ("status", "is_well"),
    [
        (WELL, True),
        (UNASKED, True),
        (AWAY, False),
        (replace(WELL, store_last_error="database or disk is full"), False),
        (replace(WELL, queue_short=True), False),
        (replace(WELL, store_damaged=True, store_lost=3), True),
    ],
)
def test_is_well(status: Status, is_well: bool) -> None:
    assert status.is_well is is_well
