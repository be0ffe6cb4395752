from __future__ import annotations

import asyncio
import logging

import pytest

from conftest import FakeClock, eventually_async
from mx_validator import verdict
from mx_validator.verdict import UNEXPECTED, Answer, Decider, Memory, Verdict

ALLOW = Answer(Verdict.ALLOW, "platform says yes", "platform")
DENY = Answer(Verdict.DENY, "platform says no", "platform")
DEFER = Answer(Verdict.DEFER, "platform answered 502", "platform")


class Platform:
    """A platform that answers as it is told, and can be held."""

    def __init__(self, answer: Answer = ALLOW) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.free = asyncio.Event()
        self.free.set()

    async def ask(self, domain: str) -> Answer:
        self.asked.append(domain)
        answer = self.answer
        await self.free.wait()
        return answer


def decider(platform: Platform, clock: FakeClock, answer_seconds: float = 60) -> Decider:
    return Decider(platform.ask, 300, 60, answer_seconds, clock)


@pytest.mark.parametrize(("answer", "ttl"), [(ALLOW, 300), (DENY, 60)])
async def test_a_verdict_is_remembered_for_its_ttl(
    answer: Answer, ttl: int, clock: FakeClock
) -> None:
    platform = Platform(answer)
    decide = decider(platform, clock)
    assert decide.decide_now("x.example") is None
    assert await decide.decide("x.example") == answer
    clock.now += ttl - 1
    remembered = Answer(answer.verdict, answer.reason, "memory", ttl - 1)
    assert decide.decide_now("x.example") == remembered
    assert await decide.decide("x.example") == remembered
    assert platform.asked == ["x.example"]
    clock.now += 1
    assert decide.decide_now("x.example") is None
    assert await decide.decide("x.example") == answer
    assert platform.asked == ["x.example"] * 2


async def test_a_use_does_not_make_a_verdict_last_longer(clock: FakeClock) -> None:
    decide = decider(Platform(), clock)
    await decide.decide("x.example")
    for _ in range(3):
        clock.now += 99
        assert decide.decide_now("x.example")
    clock.now += 3
    assert decide.decide_now("x.example") is None


async def test_no_ttl_no_memory(clock: FakeClock) -> None:
    platform = Platform()
    decide = Decider(platform.ask, 0, 0, clock=clock)
    await decide.decide("x.example")
    assert decide.decide_now("x.example") is None


async def test_a_new_ttl_counts_for_what_is_in_memory(clock: FakeClock) -> None:
    decide = decider(Platform(), clock)
    await decide.decide("x.example")
    clock.now += 50
    decide.set_ttls(40, 60)
    assert decide.decide_now("x.example") is None


async def test_the_last_verdict_counts(clock: FakeClock) -> None:
    platform = Platform(DENY)
    decide = decider(platform, clock)
    for answer in (DENY, ALLOW, DENY):
        platform.answer = answer
        assert (await decide.decide("x.example")).verdict is answer.verdict
        remembered = decide.decide_now("x.example")
        assert remembered is not None
        assert remembered.verdict is answer.verdict
        clock.now += 301


async def test_defer_is_not_remembered(clock: FakeClock) -> None:
    platform = Platform(DEFER)
    decide = decider(platform, clock)
    assert await decide.decide("x.example") == DEFER
    assert decide.decide_now("x.example") is None
    assert await decide.decide("x.example") == DEFER
    assert platform.asked == ["x.example"] * 2


async def test_those_who_ask_together_share_one_question(clock: FakeClock) -> None:
    platform = Platform()
    platform.free.clear()
    decide = decider(platform, clock)
    waiting = [asyncio.create_task(decide.decide("x.example")) for _ in range(50)]
    other = asyncio.create_task(decide.decide("y.example"))
    await eventually_async(lambda: len(platform.asked) == 2)
    platform.free.set()
    assert await asyncio.gather(*waiting, other) == [ALLOW] * 51
    assert sorted(platform.asked) == ["x.example", "y.example"]


@pytest.mark.usefixtures("_logged")
async def test_after_the_deadline_the_answer_is_defer_and_the_verdict_still_kept(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    platform = Platform()
    platform.free.clear()
    decide = decider(platform, clock, answer_seconds=0.01)
    late = Answer(Verdict.DEFER, "no answer within 0.01 s", "deadline")
    assert await decide.decide("x.example") == late
    assert 'verdict=DEFER domain=x.example source=deadline reason="no answer' in caplog.text
    # Who comes now waits for the same question.
    assert await decide.decide("x.example") == late
    platform.free.set()
    await eventually_async(lambda: decide.decide_now("x.example"))
    assert platform.asked == ["x.example"]


async def test_who_leaves_does_not_take_the_question_along(clock: FakeClock) -> None:
    platform = Platform()
    platform.free.clear()
    decide = decider(platform, clock)
    leaving = asyncio.create_task(decide.decide("x.example"))
    staying = asyncio.create_task(decide.decide("x.example"))
    await eventually_async(lambda: platform.asked)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    platform.free.set()
    assert await staying == ALLOW


async def test_the_verdict_is_kept_when_all_have_left(clock: FakeClock) -> None:
    platform = Platform()
    platform.free.clear()
    decide = decider(platform, clock)
    leaving = asyncio.create_task(decide.decide("x.example"))
    await eventually_async(lambda: platform.asked)
    leaving.cancel()
    platform.free.set()
    await eventually_async(lambda: decide.decide_now("x.example"))


@pytest.mark.usefixtures("_logged")
async def test_an_unexpected_error_is_defer_and_in_the_log(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(_: str) -> Answer:
        raise KeyError("surprise")

    decide = Decider(ask, 300, 60, clock=clock)
    assert await decide.decide("x.example") == UNEXPECTED
    assert "KeyError: 'surprise'" in caplog.text
    assert decide.decide_now("x.example") is None
    assert await decide.decide("x.example") == UNEXPECTED


async def test_forget(clock: FakeClock) -> None:
    platform = Platform()
    decide = decider(platform, clock)
    await decide.decide("x.example")
    platform.answer = DENY
    await decide.decide("y.example")
    decide.forget()
    assert decide.decide_now("x.example") is None
    assert decide.decide_now("y.example") is None


async def test_what_was_asked_before_forget_is_not_remembered_after_it(clock: FakeClock) -> None:
    platform = Platform(ALLOW)
    platform.free.clear()
    decide = decider(platform, clock)
    before = asyncio.create_task(decide.decide("x.example"))
    await eventually_async(lambda: platform.asked)
    decide.forget()
    platform.answer = DENY
    after = asyncio.create_task(decide.decide("x.example"))
    await eventually_async(lambda: len(platform.asked) == 2)
    platform.free.set()
    assert (await before, await after) == (ALLOW, DENY)
    remembered = decide.decide_now("x.example")
    assert remembered is not None
    assert remembered.verdict is Verdict.DENY


def test_memory_drops_the_least_recently_used() -> None:
    memory = Memory(Verdict.ALLOW, 60, max_domains=3)
    for domain in ("a", "b", "c"):
        memory.remember(domain, "", 0)
    memory.recall("a", 1)
    memory.remember("b", "", 1)
    memory.remember("d", "", 1)
    assert [domain for domain in "abcd" if memory.recall(domain, 1)] == ["a", "b", "d"]


async def test_denied_garbage_does_not_push_out_what_is_allowed(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "DENY_MEMORY_DOMAINS", 10)
    monkeypatch.setattr(verdict, "ALLOW_MEMORY_DOMAINS", 10)
    platform = Platform()
    decide = decider(platform, clock)
    await decide.decide("x.example")
    platform.answer = DENY
    for number in range(30):
        await decide.decide(f"{number}.example")
    assert decide.decide_now("x.example")
    assert decide.decide_now("29.example")
    assert not decide.decide_now("19.example")


@pytest.mark.usefixtures("_logged")
async def test_log_tells_what_the_platform_said_and_what_memory(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    platform = Platform(Answer(Verdict.DENY, 'says "no"\n', "platform"))
    platform.free.clear()
    decide = decider(platform, clock)
    waiting = [asyncio.create_task(decide.decide("x.example")) for _ in range(3)]
    await eventually_async(lambda: platform.asked)
    clock.now += 0.012
    platform.free.set()
    await asyncio.gather(*waiting)
    decide.decide_now("x.example")
    line = 'verdict=DENY domain=x.example source={} reason="says \\"no\\"\\n"'
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, line.format("platform") + " ms=12"),
        (logging.DEBUG, line.format("memory")),
    ]
