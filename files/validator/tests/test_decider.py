from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FakeClock
from mx_validator import decider, throttle
from mx_validator.cache import NegativeCache
from mx_validator.decider import CacheTimes, Decider, Stores
from mx_validator.model import (
    UNEXPECTED_ERROR,
    Answer,
    LookupKind,
    Outcome,
    Source,
    Verdict,
)
from mx_validator.throttle import CircuitBreaker, Throttle, TokenBucket
from support import eventually_async

YES = Outcome(Verdict.ALLOW, "platform says yes", "allow")
NO = Outcome(Verdict.DENY, "platform says no", "deny")
AWAY = Outcome(Verdict.DEFER, "platform answered 502", "http_error")
REFUSED = Outcome(Verdict.DEFER, "API key refused (403)", "key_refused")

ALLOW = Answer(Verdict.ALLOW, "platform says yes", "platform")
DENY = Answer(Verdict.DENY, "platform says no", "platform")
DEFER = Answer(Verdict.DEFER, "platform answered 502", "platform")

DAY = 86400
TIMES = CacheTimes(allow_ttl=300, deny_ttl=60, known_good=7 * DAY, deny_grace=900)


class FakePlatform:
    """A platform that gives the outcome it is told, not before `free` is set."""

    def __init__(self, outcome: Outcome = YES) -> None:
        self.outcome = outcome
        self.asked: list[tuple[str, LookupKind]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def ask(self, domain: str, kind: LookupKind) -> Outcome:
        self.asked.append((domain, kind))
        outcome = self.outcome
        await self.free.wait()
        return outcome


class FakeStore:
    """Stores domains in memory, with their times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.moments: dict[str, float] = {}

    @property
    def domains(self) -> set[str]:
        return set(self.moments)

    def save(self, domain: str, age_seconds: float = 0.0) -> None:
        self.moments.pop(domain, None)
        self.moments[domain] = self._clock() - age_seconds

    def delete(self, domain: str) -> None:
        self.moments.pop(domain, None)

    def ages(self) -> list[tuple[str, float]]:
        now = self._clock()
        return [(domain, max(0.0, now - moment)) for domain, moment in self.moments.items()]


class World:
    """A decider with a platform and stores."""

    def __init__(self, clock: FakeClock, outcome: Outcome = YES, times: CacheTimes = TIMES) -> None:
        self.clock = clock
        self.platform = FakePlatform(outcome)
        self.store = FakeStore(clock)
        self.mail_store = FakeStore(clock)
        self.throttle = Throttle(TokenBucket(1000, 1000, clock()), CircuitBreaker("/etc/key"))
        self.times = times
        self.restart()

    def restart(self) -> None:
        """Restart the daemon: a new decider loads what is stored."""
        stores = Stores(self.store, self.mail_store)
        self.decider = Decider(self.platform.ask, self.times, self.throttle, stores, self.clock)
        self.decider.load(self.store.ages(), dict(self.mail_store.ages()))

    async def ask(self, domain: str = "x.example") -> Answer:
        """Return the answer to a request."""
        answer = self.decider.decide(domain)
        return answer if isinstance(answer, Answer) else await answer

    def at_once(self, domain: str = "x.example") -> Answer:
        """Return the answer to a request, which must not need a lookup."""
        answer = self.decider.decide(domain)
        assert isinstance(answer, Answer)
        return answer

    async def settle(self) -> None:
        """Wait for the lookups in flight."""
        while questions := [*self.decider._lookups.values()]:
            await asyncio.wait(questions)

    async def known_good(self, age: float, domain: str = "x.example") -> None:
        """Let the platform confirm a domain, and advance the clock."""
        outcome, self.platform.outcome = self.platform.outcome, YES
        await self.ask(domain)
        self.platform.outcome = outcome
        self.platform.asked.clear()
        self.clock.now += age


@pytest.fixture
def world(clock: FakeClock) -> World:
    return World(clock)


def given_as(answer: Answer, source: Source, age: float = 0) -> bool:
    return (answer.source, answer.age_seconds) == (source, age)


# -- fresh answers ------------------------------------------------------------


async def test_a_yes_is_fresh_for_its_ttl_and_then_refreshed_behind_the_senders_back(
    world: World,
) -> None:
    assert await world.ask() == ALLOW
    world.clock.now += 299
    assert world.at_once() == Answer(Verdict.ALLOW, "platform says yes", "memory", 299)
    assert len(world.platform.asked) == 1
    world.clock.now += 1
    assert world.at_once() == Answer(Verdict.ALLOW, "platform said yes", "known good", 300)
    await world.settle()
    assert world.platform.asked == [
        ("x.example", LookupKind.UNKNOWN),
        ("x.example", LookupKind.REFRESH),
    ]
    assert given_as(world.at_once(), "memory", 0)


async def test_a_no_is_remembered_for_its_ttl(world: World) -> None:
    world.platform.outcome = NO
    assert await world.ask() == DENY
    world.clock.now += 59
    assert world.at_once() == Answer(Verdict.DENY, "platform says no", "memory", 59)
    world.clock.now += 1
    assert await world.ask() == DENY
    assert world.platform.asked == [("x.example", LookupKind.UNKNOWN)] * 2


async def test_a_use_does_not_make_a_no_last_longer(world: World) -> None:
    world.platform.outcome = NO
    await world.ask()
    for _ in range(2):
        world.clock.now += 29
        assert given_as(world.at_once(), "memory", world.clock.now - 1000)
    world.clock.now += 2
    await world.ask()
    assert len(world.platform.asked) == 2


async def test_times_can_be_changed(world: World) -> None:
    await world.known_good(50)
    world.decider.times = replace(TIMES, allow_ttl=40)
    assert given_as(world.at_once(), "known good", 50)
    world.platform.outcome = NO
    await world.ask("y.example")
    world.clock.now += 30
    world.decider.times = replace(TIMES, deny_ttl=30)
    await world.ask("y.example")
    assert world.platform.asked[1:] == [("y.example", LookupKind.UNKNOWN)] * 2


async def test_defer_is_not_remembered(world: World) -> None:
    world.platform.outcome = AWAY
    assert await world.ask() == DEFER
    assert await world.ask() == DEFER
    assert len(world.platform.asked) == 2


# -- known good ---------------------------------------------------------------


@pytest.mark.parametrize("age", [300, 7 * DAY - 1])
async def test_known_good_is_allowed_while_the_platform_cannot_say(
    age: float, world: World
) -> None:
    await world.known_good(age)
    world.platform.outcome = AWAY
    for _ in range(3):
        assert world.at_once() == Answer(Verdict.ALLOW, "platform said yes", "known good", age)
        await world.settle()
    assert world.store.domains == {"x.example"}


async def test_known_good_ends(world: World) -> None:
    await world.known_good(7 * DAY)
    world.platform.outcome = AWAY
    assert await world.ask() == DEFER
    world.platform.outcome = NO
    assert await world.ask() == DENY  # without grace
    assert world.store.domains == set()


async def test_known_good_can_be_switched_off(world: World) -> None:
    world.decider.times = replace(TIMES, known_good=0)
    await world.known_good(299)
    assert given_as(world.at_once(), "memory", 299)
    world.clock.now += 1
    world.platform.outcome = AWAY
    assert await world.ask() == DEFER


async def test_known_good_never_waits(world: World) -> None:
    await world.known_good(301)
    world.platform.free.clear()
    for _ in range(3):
        assert given_as(world.at_once(), "known good", 301)
    await eventually_async(lambda: world.platform.asked)
    assert world.platform.asked == [("x.example", LookupKind.REFRESH)]
    world.platform.free.set()


async def test_a_refresh_without_a_verdict_is_not_repeated_with_every_mail(world: World) -> None:
    await world.known_good(301)
    world.platform.outcome = AWAY
    for seconds in (0, 9.9, 0.1):
        world.clock.now += seconds
        world.at_once()
        await world.settle()
    assert len(world.platform.asked) == 2


async def test_what_was_kept_counts_from_the_start(world: World) -> None:
    world.platform.outcome = AWAY
    world.decider.load([("old.example", 8 * DAY), ("good.example", 6 * DAY), ("new.example", 1)])
    assert given_as(world.at_once("new.example"), "memory", 1)
    assert given_as(world.at_once("good.example"), "known good", 6 * DAY)
    assert await world.ask("old.example") == DEFER
    assert list(world.decider.ages()) == [
        ("old.example", 8 * DAY),
        ("good.example", 6 * DAY),
        ("new.example", 1),
    ]


# -- one bad answer -----------------------------------------------------------


async def deny_for(world: World, seconds: int, every: int) -> Answer:
    """Let the platform deny the domain for so long; return the last answer."""
    world.platform.outcome = NO
    answer = world.at_once()
    await world.settle()
    for _ in range(0, seconds, every):
        world.clock.now += every
        answer = await world.ask()
        await world.settle()
    return answer


async def test_a_no_counts_when_it_has_been_repeated_for_the_grace(world: World) -> None:
    await world.known_good(301)
    assert (await deny_for(world, 899, 31)).verdict is Verdict.ALLOW
    assert given_as(world.at_once(), "known good", world.clock.now - 1000)
    assert "x.example" in world.store.domains
    world.clock.now += 60
    world.at_once()
    await world.settle()
    assert world.at_once().verdict is Verdict.DENY
    assert world.store.domains == set()


@pytest.mark.parametrize("other", [YES, AWAY])
async def test_any_other_answer_in_between_begins_the_grace_anew(
    other: Outcome, world: World
) -> None:
    await world.known_good(301)
    await deny_for(world, 840, 60)
    world.platform.outcome = other
    world.clock.now += 400
    world.at_once()
    await world.settle()
    world.clock.now += 400
    assert (await deny_for(world, 840, 60)).verdict is Verdict.ALLOW
    assert (await deny_for(world, 120, 60)).verdict is Verdict.DENY


async def test_without_grace_a_no_counts_at_once(world: World) -> None:
    world.decider.times = replace(TIMES, deny_grace=0)
    await world.known_good(301)
    world.platform.outcome = NO
    world.at_once()
    await world.settle()
    assert world.at_once().verdict is Verdict.DENY


async def test_a_denied_domain_is_asked_about_though_no_mail_comes(world: World) -> None:
    await world.known_good(301)
    world.platform.outcome = NO
    world.at_once()
    await pass_seconds(world, 950)
    assert len(world.platform.asked) == 1 + 900 / 60
    assert world.at_once().verdict is Verdict.DENY


async def test_a_short_grace_has_its_denials_too(world: World) -> None:
    world.decider.times = replace(TIMES, deny_grace=10)
    await world.known_good(301)
    world.platform.outcome = NO
    world.at_once()
    await pass_seconds(world, 11)
    assert len(world.platform.asked) == 1 + decider.DENIALS_TO_COUNT
    assert not world.store.domains


async def pass_seconds(world: World, seconds: int, domains: Sequence[str] = ()) -> None:
    """Advance the clock, with a heartbeat and a mail for each of the domains every second."""
    for _ in range(seconds):
        for domain in domains:
            world.at_once(domain)
            await world.settle()
        world.decider.run_maintenance()
        await world.settle()
        world.clock.now += 1


async def test_denials_with_an_outage_between_them_drop_nothing(world: World) -> None:
    """A few wrong denials are not a quarter of an hour of denials."""
    domains = [f"{number}.example" for number in range(1000)]
    world.decider.load((domain, 301) for domain in domains)
    for _ in range(2):
        world.platform.outcome = NO
        await pass_seconds(world, 10, domains)
        world.platform.outcome = AWAY
        await pass_seconds(world, 1200)
    world.platform.outcome = NO
    await pass_seconds(world, 10, domains)
    assert len(world.decider.known_good) == 1000
    assert world.store.domains == set()  # no domain was confirmed again


async def test_denials_that_are_far_apart_never_count(world: World) -> None:
    """What the platform would have said in between is not known."""
    await world.known_good(301)
    world.platform.outcome = NO
    for _ in range(20):
        assert world.at_once().verdict is Verdict.ALLOW
        await world.settle()
        world.clock.now += 181
    assert "x.example" in world.store.domains


async def test_few_denials_never_count_however_long_ago_the_first(world: World) -> None:
    world.decider.times = replace(TIMES, deny_ttl=0, deny_grace=60)
    await world.known_good(301)
    world.platform.outcome = NO
    for _ in range(decider.DENIALS_TO_COUNT - 1):
        world.at_once()
        await world.settle()
        world.clock.now += 30
    assert world.at_once().verdict is Verdict.ALLOW
    await world.settle()
    assert await world.ask() == DENY


async def test_a_no_of_one_platform_does_not_count_for_the_next(world: World) -> None:
    await world.known_good(301)
    await deny_for(world, 840, 60)
    world.decider.change_platform()
    assert (await deny_for(world, 120, 60)).verdict is Verdict.ALLOW


class SlowWorld(World):
    """A world in which each lookup takes a second."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.denied: set[str] = set()
        self._beat = asyncio.Event()
        self.decider._lookup = self._answer

    async def _answer(self, domain: str, _: LookupKind) -> Outcome:
        await self._beat.wait()
        return NO if domain in self.denied else YES

    async def pass_second(self) -> None:
        self.decider.run_maintenance()
        await asyncio.sleep(0)
        ending = [*self.decider._lookups.values()]
        self.clock.now += 1
        self._beat.set()
        await asyncio.gather(*ending)
        self._beat.clear()


async def test_a_platform_that_denies_everything_is_believed_in_the_end(clock: FakeClock) -> None:
    """There are a thousand lookups, four at a time, and each takes a second."""
    world = SlowWorld(clock)
    known_good = world.decider.known_good
    world.denied = {f"{number}.example" for number in range(1000)}
    world.decider.load((domain, 301) for domain in world.denied)
    seconds = 0
    while known_good:
        for domain, _ in [*known_good.items()][seconds % len(known_good) :][:4]:
            world.at_once(domain)
        await world.pass_second()
        seconds += 1
        assert len(known_good) == 1000 or seconds >= TIMES.deny_grace
        assert seconds < 6 * TIMES.deny_grace


async def test_a_domain_that_was_given_up_does_not_wait_behind_others(clock: FakeClock) -> None:
    """Mail for others always needs more refreshes than may be in flight."""
    world = SlowWorld(clock)
    others = [f"{number}.example" for number in range(3000)]
    world.decider.load((domain, 301) for domain in ["x.example", *others])
    world.denied = {"x.example"}
    world.at_once()
    for second in range(int(TIMES.deny_grace + 2 * TIMES.deny_ttl)):
        await world.pass_second()
        for number in range(20):
            world.at_once(others[(20 * second + number) % len(others)])
    assert world.decider.known_good.confirmed_at("x.example") is None


async def test_the_answer_to_a_sender_who_waits_for_a_refresh(world: World) -> None:
    """An operator sees with `check` that a denial does not count yet."""
    world.clock.now += 30 * DAY
    await world.known_good(301)
    world.platform.outcome = NO
    world.at_once()
    answer = await world.decider._lookups["x.example"]
    assert answer == Answer(
        Verdict.ALLOW,
        "platform says no, 1 times in 0 s: counts from 5 times in 900 s on",
        "known good",
        301,
    )


# -- maintenance --------------------------------------------------------------


async def test_unused_domains_are_confirmed_before_they_expire(world: World) -> None:
    await world.known_good(3.5 * DAY)
    world.decider.run_maintenance()
    await world.settle()
    assert not world.platform.asked
    world.clock.now += 1
    world.decider.run_maintenance()
    await world.settle()
    assert world.platform.asked == [("x.example", LookupKind.REFRESH)]
    assert given_as(world.at_once(), "memory", 0)


async def pass_days(world: World, days: int, beats_a_day: int = 24) -> None:
    """Advance the clock without mail."""
    for _ in range(days * beats_a_day):
        world.clock.now += DAY / beats_a_day
        world.decider.run_maintenance()
        await world.settle()


@pytest.mark.parametrize("restart_days", [0, 1, 3])
async def test_a_domain_without_mail_for_weeks_is_known_no_longer(
    restart_days: int, world: World
) -> None:
    """The number of restarts does not matter."""
    await world.known_good(0)
    for day in range(35):
        if day <= 28:
            assert world.decider.known_good.confirmed_at("x.example") is not None, day
        await pass_days(world, 1)
        if restart_days and day % restart_days == 0:
            world.restart()
            await world.ask("other.example")  # domains expire only after a verdict
    assert world.decider.known_good.confirmed_at("x.example") is None
    assert "x.example" not in world.store.domains | world.mail_store.domains
    world.platform.asked.clear()
    assert await world.ask() == ALLOW  # an ordinary lookup
    assert ("x.example", LookupKind.UNKNOWN) in world.platform.asked


@pytest.mark.parametrize("pause", [4, 27])
async def test_a_domain_with_rare_mail_stays_known(pause: int, world: World) -> None:
    await world.known_good(0)
    for _ in range(6):
        await pass_days(world, pause)
        assert world.at_once().verdict is Verdict.ALLOW
        await world.settle()
    assert world.mail_store.domains <= {"x.example"}


async def test_mail_for_a_domain_that_was_just_confirmed_by_itself_counts(world: World) -> None:
    await world.known_good(3.5 * DAY + 1)
    for _ in range(20):
        world.decider.run_maintenance()
        await world.settle()
        world.clock.now += 100
        assert given_as(world.at_once(), "memory", 100)  # the next refresh is long after this mail
        world.clock.now += 3.5 * DAY
    assert world.mail_store.moments["x.example"] > world.clock.now - 8 * DAY
    assert {kind for _, kind in world.platform.asked} == {LookupKind.REFRESH}


async def test_mail_that_comes_while_the_platform_is_asked_counts(world: World) -> None:
    await world.known_good(3.5 * DAY + 1)
    world.platform.free.clear()
    world.decider.run_maintenance()
    assert world.at_once().verdict is Verdict.ALLOW
    world.platform.free.set()
    await world.settle()
    assert not world.decider.known_good.is_unused("x.example")
    assert given_as(world.at_once(), "memory", 0)


async def test_an_unused_domain_stays_good_for_its_days_in_an_outage(world: World) -> None:
    await world.known_good(0)
    await pass_days(world, 28)
    last = world.decider.known_good.confirmed_at("x.example")
    assert last is not None
    world.platform.outcome = AWAY
    world.restart()
    world.clock.now = last + 7 * DAY - 1
    world.decider.run_maintenance()
    assert world.at_once().verdict is Verdict.ALLOW


async def test_what_is_loaded_beyond_the_bound_leaves_the_disk(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.store.moments = dict.fromkeys(["a", "b", "c"], 0)
    world.mail_store.moments = dict.fromkeys(["b", "gone"], -100)
    world.decider.known_good.max_domains = 2
    world.decider.load(world.store.ages(), dict(world.mail_store.ages()))
    assert world.store.domains == {"a", "c"}
    assert world.mail_store.domains == set()
    await world.ask("d")
    assert caplog.text.count("no room for more than 2 known-good domains") == 1


async def test_no_domain_is_refreshed_while_it_is_fresh(world: World) -> None:
    world.decider.times = replace(TIMES, known_good=400)
    await world.known_good(300)
    world.decider.run_maintenance()
    await world.settle()
    assert not world.platform.asked
    world.clock.now += 1
    world.decider.run_maintenance()
    await world.settle()
    assert world.platform.asked == [("x.example", LookupKind.REFRESH)]


async def test_expired_domains_are_dropped_while_the_platform_gives_verdicts(
    world: World,
) -> None:
    world.decider.load((f"{number}.example", 7 * DAY + 1) for number in range(25))
    world.store.moments = {"0.example": 0, "24.example": 0}
    world.platform.free.clear()
    world.decider.run_maintenance()  # there was no lookup yet
    assert len(world.decider.known_good) == 25
    world.throttle.breaker.record_failure("away", False, world.clock())
    world.decider.run_maintenance()
    assert len(world.decider.known_good) == 25
    world.throttle.breaker.record_success(world.clock())
    world.decider.run_maintenance()
    assert len(world.decider.known_good) == 5
    assert world.store.domains == {"24.example"}
    world.decider.run_maintenance()
    assert len(world.decider.known_good) == 0
    world.platform.free.set()


async def test_a_domain_displaced_from_memory_leaves_the_disk(world: World) -> None:
    world.decider.known_good.max_domains = 2
    for name in ("a", "b", "c"):
        await world.ask(name)
    assert world.store.domains == {"b", "c"}


# -- limits -------------------------------------------------------------------


async def test_unknown_domains_are_asked_about_at_a_bounded_rate(world: World) -> None:
    world.throttle.bucket = TokenBucket(2, 3, world.clock())
    world.platform.outcome = NO
    answers = [await world.ask(f"{number}.example") for number in range(5)]
    refused = Answer(Verdict.DEFER, "over 2 unknown domains a second", "limit")
    assert answers == [DENY] * 3 + [refused] * 2
    world.clock.now += 0.5
    assert await world.ask("5.example") == DENY
    assert world.at_once("6.example") == refused
    assert given_as(world.at_once("0.example"), "memory", 0.5)


async def test_domains_of_the_platform_do_not_use_the_rate_up(world: World) -> None:
    world.throttle.bucket = TokenBucket(2, 3, world.clock())
    for number in range(100):
        assert await world.ask(f"{number}.example") == ALLOW
    world.platform.outcome = NO
    answers = [await world.ask(f"made-up-{number}.example") for number in range(4)]
    assert [answer.source for answer in answers] == ["platform"] * 3 + ["limit"]


async def test_made_up_domains_leave_those_on_the_list_their_first_question(world: World) -> None:
    world.throttle.bucket = TokenBucket(2, 0, world.clock())
    world.decider.listed = {"x.example", "y.example"}
    assert world.at_once("made-up.example").source == "limit"
    assert await world.ask() == ALLOW
    assert world.platform.asked == [("x.example", LookupKind.LISTED)]
    world.platform.outcome = AWAY
    assert await world.ask("y.example") == DEFER
    world.platform.outcome = NO
    assert await world.ask("y.example") == DENY  # the list is no verdict
    world.clock.now += 60
    world.throttle.bucket = TokenBucket(2, 0, world.clock())
    assert world.at_once("y.example").source == "limit"
    assert world.decider.listed == set()


async def test_a_list_is_of_one_platform(world: World) -> None:
    world.decider.listed = {"x.example", "y.example"}
    world.decider.forget("y.example")
    assert world.decider.listed == {"x.example"}
    world.decider.change_platform()
    assert world.decider.listed == set()


async def test_questions_under_way_are_bounded(world: World) -> None:
    world.platform.free.clear()
    waiting = [
        asyncio.create_task(world.ask(f"{number}.example"))
        for number in range(throttle.MAX_IN_FLIGHT[LookupKind.UNKNOWN])
    ]
    await eventually_async(
        lambda: len(world.platform.asked) == throttle.MAX_IN_FLIGHT[LookupKind.UNKNOWN]
    )
    refused = Answer(Verdict.DEFER, "64 lookups at the platform in flight", "limit")
    assert world.at_once("one-more.example") == refused
    joining = asyncio.create_task(world.ask("0.example"))
    world.platform.free.set()
    assert await asyncio.gather(*waiting, joining) == [ALLOW] * 65
    assert await world.ask("one-more.example") == ALLOW


async def test_refreshes_are_bounded_and_have_nothing_to_do_with_unknown_domains(
    world: World,
) -> None:
    for number in range(10):
        await world.known_good(0, f"{number}.example")
    world.clock.now += 301
    world.platform.free.clear()
    world.throttle.in_flight[LookupKind.UNKNOWN] = throttle.MAX_IN_FLIGHT[LookupKind.UNKNOWN]
    world.throttle.bucket = TokenBucket(1, 0, world.clock())
    for number in range(10):
        assert given_as(world.at_once(f"{number}.example"), "known good", 301)
    await eventually_async(
        lambda: len(world.platform.asked) == throttle.MAX_IN_FLIGHT[LookupKind.REFRESH]
    )
    assert {kind for _, kind in world.platform.asked} == {LookupKind.REFRESH}
    world.platform.free.set()


async def test_a_silent_platform_is_spared_and_probed(world: World) -> None:
    await world.known_good(301, "good.example")
    world.platform.outcome = AWAY
    for number in range(throttle.FAILURES_TO_OPEN):
        assert await world.ask(f"{number}.example") == DEFER
    spared = Answer(Verdict.DEFER, "platform gives no verdict: platform answered 502", "limit")
    world.platform.asked.clear()
    world.clock.now += throttle.PROBE_SECONDS - 1
    assert world.at_once() == spared
    assert given_as(world.at_once("good.example"), "known good", 301 + 4)
    await world.settle()
    assert not world.platform.asked
    world.clock.now += 1
    assert await world.ask() == DEFER  # one probe of each kind
    assert world.at_once() == spared
    world.at_once("good.example")
    await world.settle()
    assert world.platform.asked == [
        ("x.example", LookupKind.UNKNOWN),
        ("good.example", LookupKind.REFRESH),
    ]
    world.platform.outcome = NO
    world.clock.now += throttle.PROBE_SECONDS
    assert await world.ask("a.example") == DENY
    assert await world.ask("b.example") == DENY


async def test_a_refused_key_is_a_failure_of_its_own(world: World) -> None:
    world.platform.outcome = REFUSED
    await world.ask()
    assert world.throttle.breaker.health.key_refused
    world.platform.outcome = YES
    await world.ask()
    assert not world.throttle.breaker.health.key_refused


# -- lookups ------------------------------------------------------------------


async def test_requests_at_the_same_time_share_one_lookup(world: World) -> None:
    world.platform.free.clear()
    waiting = [asyncio.create_task(world.ask()) for _ in range(50)]
    other = asyncio.create_task(world.ask("y.example"))
    await eventually_async(lambda: len(world.platform.asked) == 2)
    world.platform.free.set()
    assert await asyncio.gather(*waiting, other) == [ALLOW] * 51
    assert len(world.platform.asked) == 2


@pytest.mark.usefixtures("_logged")
async def test_after_the_deadline_the_answer_is_defer_and_the_verdict_still_kept(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decider, "ANSWER_SECONDS", 0.01)
    world.platform.free.clear()
    late = Answer(Verdict.DEFER, "no answer within 0.01 s", "deadline")
    assert await world.ask() == late
    assert 'verdict=DEFER domain=x.example source=deadline reason="no answer' in caplog.text
    # A request at this time waits for the same lookup.
    assert await world.ask() == late
    world.platform.free.set()
    await world.settle()
    assert given_as(world.at_once(), "memory", 0)
    assert len(world.platform.asked) == 1
    assert world.decider.answer_counts == {("DEFER", "deadline"): 2, ("ALLOW", "memory"): 1}


async def test_a_cancelled_request_does_not_cancel_the_lookup(world: World) -> None:
    world.platform.free.clear()
    leaving = asyncio.create_task(world.ask())
    staying = asyncio.create_task(world.ask())
    await eventually_async(lambda: world.platform.asked)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    world.platform.free.set()
    assert await staying == ALLOW


async def test_the_verdict_is_kept_when_all_have_left(world: World) -> None:
    world.platform.free.clear()
    leaving = asyncio.create_task(world.ask())
    await eventually_async(lambda: world.platform.asked)
    leaving.cancel()
    world.platform.free.set()
    await world.settle()
    assert given_as(world.at_once(), "memory", 0)


@pytest.mark.usefixtures("_logged")
async def test_an_unexpected_error_is_defer_and_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(_: str, __: LookupKind) -> Outcome:
        raise KeyError("surprise")

    world.decider._lookup = ask
    for _ in range(2):
        assert await world.ask() == Answer(Verdict.DEFER, UNEXPECTED_ERROR.reason, "platform")
    assert "KeyError: 'surprise'" in caplog.text
    assert world.throttle.in_flight == dict.fromkeys(LookupKind, 0)


# -- changes from outside -----------------------------------------------------


@pytest.mark.parametrize("outcome", [YES, NO])
async def test_forget(outcome: Outcome, world: World) -> None:
    world.platform.outcome = outcome
    await world.ask()
    await world.ask("y.example")
    assert world.decider.forget("x.example")
    assert not world.decider.forget("x.example")
    assert "x.example" not in world.store.domains
    await world.ask()
    assert world.platform.asked[2:] == [("x.example", LookupKind.UNKNOWN)]
    assert given_as(world.at_once("y.example"), "memory", 0)


async def test_another_platform_is_asked_anew_but_nothing_known_good_is_lost(
    world: World,
) -> None:
    await world.known_good(1, "good.example")
    world.platform.outcome = NO
    await world.ask("bad.example")
    world.decider.change_platform()
    world.platform.outcome = AWAY
    assert given_as(world.at_once("good.example"), "known good", 1)
    assert await world.ask("bad.example") == DEFER
    await world.settle()
    world.clock.now += 10
    world.platform.outcome = YES
    world.at_once("good.example")
    await world.settle()
    assert given_as(world.at_once("good.example"), "memory", 0)


@pytest.mark.parametrize("outcome", [YES, NO])
async def test_an_outdated_lookup_is_not_cached_and_is_no_verdict(
    outcome: Outcome, world: World
) -> None:
    world.platform.outcome = outcome
    world.platform.free.clear()
    before = asyncio.create_task(world.ask())
    await eventually_async(lambda: world.platform.asked)
    world.decider.change_platform()
    world.platform.outcome = AWAY
    after = asyncio.create_task(world.ask())
    await eventually_async(lambda: len(world.platform.asked) == 2)
    world.platform.free.set()
    outdated = Answer(Verdict.DEFER, "asked before things changed", "platform")
    assert (await before, await after) == (outdated, DEFER)
    assert not world.store.domains


async def test_denied_garbage_does_not_push_out_what_is_allowed(world: World) -> None:
    world.decider.denied = NegativeCache(10)
    await world.ask()
    world.platform.outcome = NO
    for number in range(30):
        await world.ask(f"{number}.example")
    assert world.at_once().verdict is Verdict.ALLOW
    assert len(world.decider.denied) == 10


async def test_what_another_platform_confirms_at_once_is_fresh(world: World) -> None:
    world.decider.change_platform()
    assert await world.ask() == ALLOW
    assert given_as(world.at_once(), "memory", 0)


async def test_forgetting_covers_what_is_on_its_way(world: World) -> None:
    world.platform.free.clear()
    before = asyncio.create_task(world.ask())
    await eventually_async(lambda: world.platform.asked)
    world.decider.forget("x.example")
    world.platform.free.set()
    assert (await before).verdict is Verdict.DEFER
    assert len(world.decider.known_good) == 0


# -- log ----------------------------------------------------------------------


@pytest.mark.usefixtures("_logged")
async def test_log_tells_what_the_platform_said_and_what_memory(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.platform.outcome = Outcome(Verdict.DENY, 'says "no"\n', "deny")
    world.platform.free.clear()
    waiting = [asyncio.create_task(world.ask()) for _ in range(3)]
    await eventually_async(lambda: world.platform.asked)
    world.clock.now += 0.012
    world.platform.free.set()
    await asyncio.gather(*waiting)
    world.at_once()
    line = 'verdict=DENY domain=x.example source={} reason="{}"'
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, line.format("platform", 'says \\"no\\"\\n') + " ms=12"),
        (logging.DEBUG, line.format("memory", "platform says no")),
    ]


@pytest.mark.parametrize(
    ("outcome", "level"), [(YES, logging.DEBUG), (AWAY, logging.DEBUG), (NO, logging.INFO)]
)
@pytest.mark.usefixtures("_logged")
async def test_refreshes_are_logged_if_something_may_change(
    outcome: Outcome, level: int, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.known_good(301)
    caplog.clear()
    world.platform.outcome = outcome
    world.at_once()
    await world.settle()
    refresh = [record for record in caplog.records if "ms=" in record.getMessage()]
    assert [record.levelno for record in refresh] == [level]


# -- whatever happens ---------------------------------------------------------


class Rules:
    """The documented rules for a domain that the platform confirmed.

    It is good for seven days after the last yes. A no counts when the platform has said it at least
    five times in a row, the first time at least a quarter of an hour ago, and never more than three
    minutes after the time before. Any other answer begins the row anew, and so does a restart.
    """

    def __init__(self, clock: FakeClock, grace: int, max_gap: int) -> None:
        self._clock = clock
        self._grace = grace
        self._max_gap = max_gap
        self.confirmed: dict[str, float] = {}
        self.rows: dict[str, list[float]] = {}

    def is_good(self, domain: str) -> bool:
        return self._clock() - self.confirmed.get(domain, float("-inf")) < 7 * DAY

    def record(self, domain: str, outcome: Outcome) -> None:
        """Record an outcome."""
        now = self._clock()
        if outcome is YES:
            self.confirmed[domain] = now
        row = self.rows.setdefault(domain, [])
        if outcome is not NO or (row and now - row[-1] > self._max_gap):
            row.clear()
        if outcome is NO:
            row.append(now)
            if not self.is_good(domain) or (len(row) >= 5 and now - row[0] >= self._grace):
                self.confirmed.pop(domain, None)
                row.clear()


class WallClock:
    """The wall clock, which an operator sets."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.ahead = 0

    def __call__(self) -> float:
        return self._clock() + self.ahead


class RandomWorld(World):
    """A world in which anything can happen, and the rules that must hold in it."""

    domains = ("x.example", "y.example", "z.example")

    def __init__(self, times: CacheTimes, max_gap: int) -> None:
        super().__init__(FakeClock(), times=times)
        self.wall = WallClock(self.clock)
        self.store, self.mail_store = FakeStore(self.wall), FakeStore(self.wall)
        self.rules = Rules(self.clock, int(times.deny_grace), max_gap)
        self.flapping = False
        self._asked = 0
        self.restart()

    def restart(self) -> None:
        super().restart()
        self.throttle.breaker.reset("/etc/key")
        self.decider._lookup = self._answer

    async def _answer(self, domain: str, _: LookupKind) -> Outcome:
        self._asked += 1
        # A verdict from time to time, so that the circuit breaker allows more lookups.
        outcome = AWAY if self.flapping and self._asked % 4 else self.platform.outcome
        self.rules.record(domain, outcome)
        return outcome

    async def pass_time(self, seconds: int, mailed: str | None) -> None:
        """Advance the clock, with heartbeats, and mail for a domain or none."""
        beat = 1 if seconds < 20 else max(20, seconds // 50)
        for _ in range(0, seconds, beat):
            self.clock.now += beat
            if mailed:
                await self.mail(mailed)
            self.decider.run_maintenance()
            await self.settle()
            self.check()

    async def mail(self, domain: str) -> None:
        good = self.rules.is_good(domain)
        answer = await self.ask(domain)
        if good:
            assert answer.verdict is Verdict.ALLOW
        if answer.verdict is Verdict.ALLOW:
            assert domain in self.rules.confirmed
        await self.settle()

    def check(self) -> None:
        """Check that exactly those domains are known good that should be."""
        for domain in self.domains:
            confirmed = self.decider.known_good.confirmed_at(domain)
            good = confirmed is not None and self.clock() - confirmed < 7 * DAY
            assert good is self.rules.is_good(domain), domain

    def restart_daemon(self) -> None:
        """Restart the daemon, which computes ages by the wall clock."""
        self.rules.rows.clear()
        for domain in [*self.rules.confirmed]:
            moment = self.store.moments.get(domain)
            if moment is None:
                assert not self.rules.is_good(domain)
                del self.rules.confirmed[domain]
            else:
                age = max(0, self.wall() - moment)
                self.rules.confirmed[domain] = self.clock() - age
        self.restart()

    def set_clock(self, seconds: int) -> None:
        self.wall.ahead += seconds

    def change_platform(self) -> None:
        self.rules.rows.clear()
        self.decider.change_platform()


STEPS = st.lists(
    st.tuples(
        st.sampled_from([NO, NO, NO, YES, AWAY, REFUSED]),
        st.sampled_from([False, False, True]),  # whether it answers only now and then
        st.sampled_from([1, 30, 61, 170, 190, 301, 700, 700, 800, 1000, 4 * DAY, 8 * DAY]),
        st.sampled_from([*RandomWorld.domains, None]),  # gets mail meanwhile
        st.sampled_from([None, None, None, "restart", "forward", "back", "platform"]),
    ),
    max_size=15,
)


Step = tuple[Outcome, bool, int, str | None, str | None]


@pytest.mark.parametrize(
    ("times", "max_gap"),
    # Of the second, a fifth of the grace period is less than the TTL: a lookup every 12 s.
    [(TIMES, 180), (replace(TIMES, deny_ttl=20, deny_grace=60), 36)],
)
@settings(max_examples=300)
@given(steps=STEPS)
def test_the_rules_for_known_good_domains(
    steps: list[Step], times: CacheTimes, max_gap: int
) -> None:
    """The rules hold through outages, rare answers, restarts and changes of the wall clock."""
    asyncio.run(follow_the_rules(RandomWorld(times, max_gap), steps))


async def follow_the_rules(world: RandomWorld, steps: list[Step]) -> None:
    events: dict[str | None, Callable[[], None]] = {
        None: lambda: None,
        "restart": world.restart_daemon,
        "forward": lambda: world.set_clock(3 * DAY),
        "back": lambda: world.set_clock(-3 * DAY),
        "platform": world.change_platform,
    }
    for domain in world.domains[:2]:
        await world.mail(domain)
    for outcome, flapping, seconds, mailed, event in steps:
        world.platform.outcome, world.flapping = outcome, flapping
        events[event]()
        world.check()
        await world.pass_time(seconds, mailed)
