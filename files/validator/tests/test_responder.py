from __future__ import annotations

import logging

import pytest

from conftest import DUNNO, OK, RETRY, FakeClock
from mx_validator import responder
from mx_validator.protocol import AccessRequest, CheckRequest, Request
from mx_validator.responder import Responder
from mx_validator.verdict import Answer, Decider, Verdict

ANSWERS = {
    "yes.example": Answer(Verdict.ALLOW, "platform says yes", "platform"),
    "no.example": Answer(Verdict.DENY, "platform says no", "platform"),
    "away.example": Answer(Verdict.DEFER, "platform answered 502", "platform"),
}


async def ask(domain: str) -> Answer:
    return ANSWERS[domain]


@pytest.fixture
def decider(clock: FakeClock) -> Decider:
    return Decider(ask, 300, 60, clock=clock)


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
        ("joe@[192.0.2.1]", DUNNO),
        ("joe@unexpected.example", RETRY),
    ],
)
async def test_access(recipient: str, expected: bytes, decider: Decider) -> None:
    respond = Responder(decider)
    request = AccessRequest(recipient)
    assert await reply(respond, request) == expected
    assert await reply(respond, request) == expected


@pytest.mark.parametrize("recipient", ["bounce+1@yes.example", "joe@no.example", "joe"])
async def test_what_is_known_is_answered_at_once(recipient: str, decider: Decider) -> None:
    respond = Responder(decider)
    await reply(respond, AccessRequest(recipient))
    assert isinstance(respond.respond(AccessRequest(recipient)), bytes)


async def test_check(decider: Decider, clock: FakeClock) -> None:
    respond = Responder(decider)
    request = CheckRequest("YES.example")
    expected = "verdict=ALLOW\nreason=platform says yes\nsource={}\nage_seconds={}\n\n"
    assert await reply(respond, request) == expected.format("platform", 0).encode()
    clock.now += 12.4
    assert await reply(respond, request) == expected.format("memory", 12).encode()


async def test_check_of_what_is_no_domain(decider: Decider) -> None:
    assert await reply(Responder(decider), CheckRequest("joe@yes.example")) == (
        b"verdict=DENY\nreason=not a domain name\nsource=malformed\nage_seconds=0\n\n"
    )


@pytest.mark.usefixtures("_logged")
async def test_malformed_is_logged_without_what_was_asked(
    decider: Decider, caplog: pytest.LogCaptureFixture
) -> None:
    for recipient in ("s3cret", '"x@s3cret"', "x@s3cret"):
        assert await reply(Responder(decider), AccessRequest(recipient)) == DUNNO
    assert 'verdict=DENY source=malformed reason="not a domain name"' in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.usefixtures("_logged")
async def test_unexpected_error_at_once(
    decider: Decider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> str:
        raise KeyError("surprise")

    monkeypatch.setattr(responder, "recipient_domain", broken)
    assert await reply(Responder(decider), AccessRequest("joe@yes.example")) == RETRY
    assert "KeyError: 'surprise'" in caplog.text
    assert "joe" not in caplog.text


@pytest.mark.usefixtures("_logged")
async def test_unexpected_error_later(
    decider: Decider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: str) -> Answer:
        raise KeyError("surprise")

    monkeypatch.setattr(decider, "decide", broken)
    assert await reply(Responder(decider), AccessRequest("joe@yes.example")) == RETRY
    assert "a request about yes.example could not be answered" in caplog.text
    assert "joe" not in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
