from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from conftest import APART, DUNNO, OK, RETRY, FakeClock
from mx_validator import policy
from mx_validator.decider import Answer, Decider, Disk, Outcome, Times, Verdict
from mx_validator.policy import Responder
from mx_validator.protocol import Request, RequestType, parse_reply
from mx_validator.queue_space import Room
from mx_validator.status import Status
from mx_validator.throttle import Breaker, Kind, Limits, TokenBucket

ANSWERS = {
    "yes.example": Outcome(Verdict.ALLOW, "platform says yes", "allow"),
    "no.example": Outcome(Verdict.DENY, "platform says no", "deny"),
    "away.example": Outcome(Verdict.DEFER, "platform answered 502", "http_error"),
}


async def ask(domain: str, _: Kind) -> Outcome:
    return ANSWERS[domain]


class Nowhere:
    def keep(self, domain: str, age_seconds: float = 0.0) -> None:
        """Forget it."""

    drop = keep


@pytest.fixture
def decider(clock: FakeClock) -> Decider:
    limits = Limits(TokenBucket(100, 100, clock()), Breaker("/etc/key"))
    return Decider(ask, Times(300, 60, 604800, 900), limits, Disk(Nowhere(), Nowhere()), clock)


ROOM = Room(Path("/"))


def look() -> Status:
    return STATUS


STATUS = Status(
    up_seconds=1.5,
    last_verdict_seconds=None,
    failing_seconds=2.0,
    trouble="nobody\nanswers",
    key_refused=False,
    breaker_open=True,
    questions=1,
    known_good=2,
    oldest_seconds=3.0,
    newest_seconds=1.0,
    known_good_days=7,
    denied=4,
    store_unwritten=0,
    store_failing_seconds=None,
    store_trouble=None,
    store_damaged=False,
    store_lost=0,
    queue_free_inodes=70000,
    queue_short=False,
    lag_seconds=0.001,
)


FULL = b"action=452 4.3.1 Insufficient system storage\n\n"


def access(recipient: str, instance: bytes = b"", begun: bool = False) -> Request:
    return RequestType.ACCESS, recipient, instance, begun


def check(domain: str) -> Request:
    return RequestType.CHECK, domain, b"", False


def forget(domain: str) -> Request:
    return RequestType.FORGET, domain, b"", False


async def reply(respond: Responder, request: Request) -> bytes:
    answer = respond.respond(request)
    return answer if isinstance(answer, bytes) else await answer


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("bounce+1@Yes.example.", OK),
        ("joe@no.example", DUNNO),
        ("joe@away.example", RETRY),
        ("joe", DUNNO),
        ("", DUNNO),
        ("yes.example", DUNNO),
        ("@yes.example", OK),
        ("joe@[192.0.2.1]", DUNNO),
        ("joe@unexpected.example", RETRY),
    ],
)
async def test_access(recipient: str, expected: bytes, decider: Decider) -> None:
    respond = Responder(decider, look, ROOM)
    request = access(recipient)
    assert await reply(respond, request) == expected
    assert await reply(respond, request) == expected


@pytest.mark.parametrize("recipient", ["bounce+1@yes.example", "joe@no.example", "joe"])
async def test_what_is_known_is_answered_at_once(recipient: str, decider: Decider) -> None:
    respond = Responder(decider, look, ROOM)
    await reply(respond, access(recipient))
    assert isinstance(respond.respond(access(recipient)), bytes)


async def test_check(decider: Decider, clock: FakeClock) -> None:
    respond = Responder(decider, look, ROOM)
    request = check("YES.example")
    expected = "verdict=ALLOW\nreason=platform says yes\nsource={}\nage_seconds={}\n\n"
    assert await reply(respond, request) == expected.format("platform", 0).encode()
    clock.now += 12.4
    assert await reply(respond, request) == expected.format("memory", 12).encode()


@pytest.mark.parametrize("address", ["joe@yes.example", '"a@b"@YES.example.', "@yes.example"])
async def test_of_an_address_its_domain_is_meant(decider: Decider, address: str) -> None:
    respond = Responder(decider, look, ROOM)
    assert b"verdict=ALLOW\n" in await reply(respond, check(address))
    assert await reply(respond, forget(address)) == b"result=forgotten\n\n"


async def test_check_of_what_is_no_domain(decider: Decider) -> None:
    assert await reply(Responder(decider, look, ROOM), check("joe@yes")) == (
        b"verdict=DENY\nreason=not a domain name\nsource=malformed\nage_seconds=0\n\n"
    )


@pytest.mark.usefixtures("_logged")
async def test_malformed_is_logged_without_what_was_asked(
    decider: Decider, caplog: pytest.LogCaptureFixture
) -> None:
    for recipient in ("s3cret", '"x@s3cret"', "x@s3cret"):
        assert await reply(Responder(decider, look, ROOM), access(recipient)) == DUNNO
    assert 'verdict=DENY source=malformed reason="not a domain name"' in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.usefixtures("_logged")
async def test_unexpected_error_at_once(
    decider: Decider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> str:
        raise KeyError("surprise")

    monkeypatch.setattr(policy, "recipient_domain", broken)
    assert await reply(Responder(decider, look, ROOM), access("joe@yes.example")) == RETRY
    assert "KeyError: 'surprise'" in caplog.text
    assert "joe" not in caplog.text


@pytest.mark.usefixtures("_logged")
async def test_unexpected_error_later(
    decider: Decider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> Answer:
        raise KeyError("surprise")

    monkeypatch.setattr(decider, "decide", lambda _: broken())
    assert await reply(Responder(decider, look, ROOM), access("joe@yes.example")) == RETRY
    assert "a request could not be answered" in caplog.text
    assert "joe" not in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


async def test_a_domain_alone_is_no_address_however_well_it_is_known(decider: Decider) -> None:
    respond = Responder(decider, look, ROOM)
    assert await reply(respond, access("joe@yes.example")) == OK
    assert await reply(respond, access("yes.example")) == DUNNO


async def test_forget(decider: Decider) -> None:
    respond = Responder(decider, look, ROOM)
    await reply(respond, access("joe@yes.example"))
    for domain, answer in (
        ("YES.example", b"result=forgotten\n\n"),
        ("yes.example", b"result=unknown\n\n"),
        ("joe@yes", b"result=malformed\nreason=not a domain name\n\n"),
    ):
        assert await reply(respond, forget(domain)) == answer
    assert not decider.allows_at_once("yes.example")


async def test_no_room_is_a_reason_to_come_back_and_not_to_refuse(
    decider: Decider, tmp_path: Path
) -> None:
    room = Room(tmp_path)
    respond = Responder(decider, look, room)
    for room.is_short, reply_to_yes in ((False, OK), (True, FULL), (False, OK)):
        assert await reply(respond, access("joe@yes.example")) == reply_to_yes
        assert await reply(respond, access("joe@no.example")) == DUNNO
        assert await reply(respond, access("joe@away.example")) == RETRY
        assert b"verdict=ALLOW\n" in await reply(respond, check("yes.example"))


async def test_status(decider: Decider) -> None:
    answer = await reply(Responder(decider, look, ROOM), (RequestType.STATUS, "", b"", False))
    assert Status(**json.loads(parse_reply(answer)["status"])) == STATUS


async def test_answers_are_counted(decider: Decider) -> None:
    respond = Responder(decider, look, ROOM)
    for recipient in ("a@yes.example", "b@yes.example", "c@no.example", "d"):
        await reply(respond, access(recipient))
    assert decider.answers == {
        ("ALLOW", "platform"): 1,
        ("ALLOW", "memory"): 1,
        ("DENY", "platform"): 1,
        ("DENY", "malformed"): 1,
    }


@pytest.mark.parametrize("known", [False, True])
async def test_a_twin_is_sent_to_another_transaction(decider: Decider, known: bool) -> None:
    respond = Responder(decider, look, ROOM)
    if known:
        await reply(respond, access("joe@yes.example"))
    for instance in (b"1", b"2"):
        assert await reply(respond, access("Bounce+A@yes.example", instance)) == OK
        for recipient, expected in (
            ("bounce+a@yes.example", APART),
            ("Bounce+A@Yes.example", APART),
            ("Bounce+A@yes.example", OK),
            ("bounce+b@yes.example", OK),
        ):
            assert await reply(respond, access(recipient, instance, begun=True)) == expected
    assert await reply(respond, access("bounce+a@yes.example", b"3")) == OK


async def test_a_twin_that_is_not_allowed_stays_that(decider: Decider, tmp_path: Path) -> None:
    room = Room(tmp_path)
    respond = Responder(decider, look, room)
    for recipient, expected in (
        ("A@no.example", DUNNO),
        ("a@no.example", DUNNO),
        ("A@away.example", RETRY),
        ("a@away.example", RETRY),
        ("A@nonsense", DUNNO),
    ):
        assert await reply(respond, access(recipient, b"1")) == expected
    # Who was not let in is no reason to send anybody away.
    room.is_short = True
    assert await reply(respond, access("A@yes.example", b"1")) == FULL
    room.is_short = False
    assert await reply(respond, access("a@yes.example", b"1")) == OK
