from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from conftest import DUNNO, OK, OTHER_TRANSACTION, RETRY, FakeClock
from mx_validator import policy
from mx_validator.decider import CacheTimes, Decider, Stores
from mx_validator.model import Answer, LookupKind, Outcome, Verdict
from mx_validator.policy import PolicyService
from mx_validator.protocol import Request, RequestType, parse_reply
from mx_validator.queue_space import QueueSpace
from mx_validator.status import Status
from mx_validator.throttle import CircuitBreaker, Throttle, TokenBucket
from support import NullStore
from test_status_text import WELL

ANSWERS = {
    "yes.example": Outcome(Verdict.ALLOW, "platform says yes", "allow"),
    "no.example": Outcome(Verdict.DENY, "platform says no", "deny"),
    "away.example": Outcome(Verdict.DEFER, "platform answered 502", "http_error"),
}


async def ask(domain: str, _: LookupKind) -> Outcome:
    return ANSWERS[domain]


@pytest.fixture
def decider(clock: FakeClock) -> Decider:
    limits = Throttle(TokenBucket(100, 100, clock()), CircuitBreaker("/etc/key"))
    return Decider(
        ask, CacheTimes(300, 60, 604800, 900), limits, Stores(NullStore(), NullStore()), clock
    )


def read_status() -> Status:
    return WELL


@pytest.fixture
def service(decider: Decider) -> PolicyService:
    return PolicyService(decider, read_status, QueueSpace(Path("/")))


FULL = b"action=452 4.3.1 Insufficient system storage\n\n"


def access(recipient: str, instance: bytes = b"", begun: bool = False) -> Request:
    return RequestType.ACCESS, recipient, instance, begun


def check(domain: str) -> Request:
    return RequestType.CHECK, domain, b"", False


def forget(domain: str) -> Request:
    return RequestType.FORGET, domain, b"", False


async def reply(service: PolicyService, request: Request) -> bytes:
    answer = service.respond(request)
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
async def test_access(recipient: str, expected: bytes, service: PolicyService) -> None:
    request = access(recipient)
    assert await reply(service, request) == expected
    assert await reply(service, request) == expected


@pytest.mark.parametrize("recipient", ["bounce+1@yes.example", "joe@no.example", "joe"])
async def test_what_is_known_is_answered_at_once(recipient: str, service: PolicyService) -> None:
    await reply(service, access(recipient))
    assert isinstance(service.respond(access(recipient)), bytes)


async def test_check(service: PolicyService, clock: FakeClock) -> None:
    request = check("YES.example")
    expected = "verdict=ALLOW\nreason=platform says yes\nsource={}\nage_seconds={}\n\n"
    assert await reply(service, request) == expected.format("platform", 0).encode()
    clock.now += 12.4
    assert await reply(service, request) == expected.format("memory", 12).encode()


@pytest.mark.parametrize("address", ["joe@yes.example", '"a@b"@YES.example.', "@yes.example"])
async def test_of_an_address_its_domain_is_meant(service: PolicyService, address: str) -> None:
    assert b"verdict=ALLOW\n" in await reply(service, check(address))
    assert await reply(service, forget(address)) == b"result=forgotten\n\n"


async def test_check_of_what_is_no_domain(service: PolicyService) -> None:
    assert await reply(service, check("joe@yes")) == (
        b"verdict=DENY\nreason=not a domain name\nsource=malformed\nage_seconds=0\n\n"
    )


@pytest.mark.usefixtures("_logged")
async def test_malformed_is_logged_without_what_was_asked(
    service: PolicyService, caplog: pytest.LogCaptureFixture
) -> None:
    for recipient in ("s3cret", '"x@s3cret"', "x@s3cret"):
        assert await reply(service, access(recipient)) == DUNNO
    assert 'verdict=DENY source=malformed reason="not a domain name"' in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.usefixtures("_logged")
async def test_unexpected_error_at_once(
    service: PolicyService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> str:
        raise KeyError("surprise")

    monkeypatch.setattr(policy, "recipient_domain", broken)
    assert await reply(service, access("joe@yes.example")) == RETRY
    assert "KeyError: 'surprise'" in caplog.text
    assert "joe" not in caplog.text


@pytest.mark.usefixtures("_logged")
async def test_unexpected_error_later(
    decider: Decider,
    service: PolicyService,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken() -> Answer:
        raise KeyError("surprise")

    monkeypatch.setattr(decider, "decide", lambda _: broken())
    assert await reply(service, access("joe@yes.example")) == RETRY
    assert "a request could not be answered" in caplog.text
    assert "joe" not in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


async def test_a_domain_alone_is_no_address_however_well_it_is_known(
    service: PolicyService,
) -> None:
    assert await reply(service, access("joe@yes.example")) == OK
    assert await reply(service, access("yes.example")) == DUNNO


async def test_forget(decider: Decider, service: PolicyService) -> None:
    await reply(service, access("joe@yes.example"))
    for domain, answer in (
        ("YES.example", b"result=forgotten\n\n"),
        ("yes.example", b"result=unknown\n\n"),
        ("joe@yes", b"result=malformed\nreason=not a domain name\n\n"),
    ):
        assert await reply(service, forget(domain)) == answer
    assert decider.known_good.confirmed_at("yes.example") is None


async def test_no_room_is_a_reason_to_come_back_and_not_to_refuse(
    decider: Decider, tmp_path: Path
) -> None:
    queue_space = QueueSpace(tmp_path)
    service = PolicyService(decider, read_status, queue_space)
    for queue_space.is_short, reply_to_yes in ((False, OK), (True, FULL), (False, OK)):
        assert await reply(service, access("joe@yes.example")) == reply_to_yes
        assert await reply(service, access("joe@no.example")) == DUNNO
        assert await reply(service, access("joe@away.example")) == RETRY
        assert b"verdict=ALLOW\n" in await reply(service, check("yes.example"))


async def test_status(service: PolicyService) -> None:
    answer = await reply(service, (RequestType.STATUS, "", b"", False))
    assert Status(**json.loads(parse_reply(answer)["status"])) == WELL


async def test_answers_are_counted(decider: Decider, service: PolicyService) -> None:
    for recipient in ("a@yes.example", "b@yes.example", "c@no.example", "d"):
        await reply(service, access(recipient))
    assert decider.answer_counts == {
        ("ALLOW", "platform"): 1,
        ("ALLOW", "memory"): 1,
        ("DENY", "platform"): 1,
        ("DENY", "malformed"): 1,
    }


@pytest.mark.parametrize("known", [False, True])
async def test_a_recipient_that_differs_in_case_gets_452(
    service: PolicyService, known: bool
) -> None:
    if known:
        await reply(service, access("joe@yes.example"))
    for instance in (b"1", b"2"):
        assert await reply(service, access("Bounce+A@yes.example", instance)) == OK
        for recipient, expected in (
            ("bounce+a@yes.example", OTHER_TRANSACTION),
            ("Bounce+A@Yes.example", OTHER_TRANSACTION),
            ("Bounce+A@yes.example", OK),
            ("bounce+b@yes.example", OK),
        ):
            assert await reply(service, access(recipient, instance, begun=True)) == expected
    assert await reply(service, access("bounce+a@yes.example", b"3")) == OK


async def test_recipients_that_were_not_accepted_do_not_count(
    decider: Decider, tmp_path: Path
) -> None:
    queue_space = QueueSpace(tmp_path)
    service = PolicyService(decider, read_status, queue_space)
    for recipient, expected in (
        ("A@no.example", DUNNO),
        ("a@no.example", DUNNO),
        ("A@away.example", RETRY),
        ("a@away.example", RETRY),
        ("A@nonsense", DUNNO),
    ):
        assert await reply(service, access(recipient, b"1")) == expected
    # A recipient that got 452 does not count.
    queue_space.is_short = True
    assert await reply(service, access("A@yes.example", b"1")) == FULL
    queue_space.is_short = False
    assert await reply(service, access("a@yes.example", b"1")) == OK
