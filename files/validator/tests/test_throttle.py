from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mx_validator import throttle
from mx_validator.model import LookupKind
from mx_validator.throttle import (
    FAILURES_TO_OPEN,
    LOG_INTERVAL_SECONDS,
    PROBE_SECONDS,
    CircuitBreaker,
    Throttle,
    TokenBucket,
)


def test_bucket_begins_full_and_fills_at_its_rate() -> None:
    bucket = TokenBucket(2, 3, 100)
    assert [bucket.take(100) for _ in range(4)] == [True] * 3 + [False]
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert not bucket.take(100.5)
    assert [bucket.take(1000) for _ in range(4)] == [True] * 3 + [False]


def test_bucket_can_be_changed() -> None:
    bucket = TokenBucket(1, 10, 0)
    bucket.configure(5, 2)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    assert bucket.take(0.2)


def test_bucket_takes_back_what_was_taken_and_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(1, 2, 0)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    bucket.give_back()
    assert [bucket.take(0) for _ in range(2)] == [True, False]
    for _ in range(5):
        bucket.give_back()
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]


@given(
    st.integers(1, 100),
    st.integers(1, 100),
    st.lists(st.floats(0, 3), min_size=1, max_size=300),
)
def test_bucket_never_lets_more_pass_than_burst_and_rate(
    rate: int, burst: int, pauses: list[float]
) -> None:
    bucket = TokenBucket(rate, burst, 0)
    now, passed = 0.0, 0
    for pause in pauses:
        now += pause
        passed += bucket.take(now)
    assert passed <= burst + rate * now + 1e-6


def test_breaker_opens_after_failures_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("/etc/key")
    for number in range(FAILURES_TO_OPEN - 1):
        breaker.record_failure("away", False, number)
    breaker.record_success(10)
    for number in range(FAILURES_TO_OPEN):
        assert not breaker.is_open
        breaker.record_failure(f"away {number}", False, 20 + number)
    assert breaker.is_open
    assert not any(breaker.allows(kind, 24 + PROBE_SECONDS - 0.1) for kind in LookupKind)
    assert all(breaker.allows(kind, 24 + PROBE_SECONDS) for kind in LookupKind)
    assert breaker.health.failing_since == 20
    assert breaker.health.last_verdict == 10
    assert breaker.health.last_error == "away 4"
    for number in range(20):
        breaker.record_failure("away", False, 100 + number)
    assert [record.getMessage() for record in caplog.records] == [
        (
            "the platform gives no verdict (away 4): see that it answers this host; until then only"
            " known-good domains are allowed, all others deferred"
        )
    ]


def test_breaker_lets_one_probe_of_a_kind_pass_at_a_time() -> None:
    breaker = CircuitBreaker("/etc/key")
    for _ in range(FAILURES_TO_OPEN):
        breaker.record_failure("away", False, 0)
    breaker.record_start(LookupKind.UNKNOWN, 10)
    assert not breaker.allows(LookupKind.UNKNOWN, 10 + PROBE_SECONDS - 0.1)
    assert breaker.allows(LookupKind.REFRESH, 10)
    assert breaker.allows(LookupKind.UNKNOWN, 10 + PROBE_SECONDS)


def test_a_closed_breaker_permits_everything() -> None:
    breaker = CircuitBreaker("/etc/key")
    breaker.record_start(LookupKind.UNKNOWN, 0)
    assert breaker.allows(LookupKind.UNKNOWN, 0)


def test_a_verdict_closes_the_breaker(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mx_validator")
    breaker = CircuitBreaker("/etc/key")
    for number in range(FAILURES_TO_OPEN):
        breaker.record_failure("away", False, 10 + number)
    caplog.clear()
    breaker.record_success(80)
    breaker.record_success(81)
    assert not breaker.is_open
    assert breaker.health == throttle.Health(last_verdict=81)
    assert [record.getMessage() for record in caplog.records] == [
        "the platform gives verdicts again, after 70 s without"
    ]


def test_health_is_up() -> None:
    breaker = CircuitBreaker("/etc/key")
    assert breaker.health.is_up is None
    breaker.record_failure("away", False, 0)
    assert breaker.health.is_up is False
    breaker.record_success(1)
    assert breaker.health.is_up is True


def test_a_single_failure_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mx_validator")
    breaker = CircuitBreaker("/etc/key")
    breaker.record_failure("away", False, 0)
    breaker.record_success(1)
    assert not caplog.records


def test_a_refused_key_is_said_once_and_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mx_validator")
    breaker = CircuitBreaker("/etc/key")
    for number in range(20):
        breaker.record_failure("API key refused (403)", True, number)
    assert breaker.is_open
    breaker.record_success(30)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.ERROR,
            (
                "API key refused (403): put the right one into /etc/key and send this process a"
                " SIGHUP; until then only known-good domains are allowed, all others deferred"
            ),
        ),
        (logging.INFO, "the platform gives verdicts again, after 30 s without"),
    ]


def test_reset_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("/etc/key")
    for _ in range(FAILURES_TO_OPEN):
        breaker.record_failure("API key refused (403)", True, 0)
    breaker.reset("/etc/other")
    assert not breaker.is_open
    breaker.record_failure("API key refused (403)", True, 0)
    assert "into /etc/other and" in caplog.text
    breaker.reset("/etc/other")
    assert breaker.health == throttle.Health()
    assert breaker.allows(LookupKind.UNKNOWN, 0)


def full(now: float = 0) -> Throttle:
    return Throttle(TokenBucket(1, 1, now), CircuitBreaker("/etc/key"))


def test_what_is_refused_costs_no_token() -> None:
    bounds = full()
    bounds.in_flight[LookupKind.UNKNOWN] = throttle.MAX_IN_FLIGHT[LookupKind.UNKNOWN]
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0)
    bounds.in_flight[LookupKind.UNKNOWN] -= 1
    for _ in range(FAILURES_TO_OPEN):
        bounds.breaker.record_failure("away", False, 0)
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0)
    bounds.breaker.reset("/etc/key")
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0) is None
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0)


def test_what_the_platform_confirms_costs_no_token() -> None:
    bounds = full()
    for _ in range(5):
        assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0) is None
        bounds.refund(LookupKind.UNKNOWN)
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0) is None
    bounds.refund(LookupKind.LISTED)  # it took none
    bounds.refund(LookupKind.REFRESH)
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, 0)


def test_domains_on_the_list_need_no_token_but_have_the_other_bounds() -> None:
    bounds = full()
    bounds.bucket = TokenBucket(1, 0, 0)
    bounds.in_flight[LookupKind.UNKNOWN] = throttle.MAX_IN_FLIGHT[LookupKind.UNKNOWN]
    assert bounds.reserve_lookup(LookupKind.LISTED, 0) is None
    bounds.in_flight[LookupKind.LISTED] = throttle.MAX_IN_FLIGHT[LookupKind.LISTED]
    assert bounds.reserve_lookup(LookupKind.LISTED, 0)
    bounds.in_flight[LookupKind.LISTED] = 0
    for _ in range(FAILURES_TO_OPEN):
        bounds.breaker.record_failure("away", False, 0)
    assert bounds.reserve_lookup(LookupKind.LISTED, 0)


def test_what_finds_no_token_is_no_probe() -> None:
    bounds = full()
    for _ in range(FAILURES_TO_OPEN):
        bounds.breaker.record_failure("away", False, 0)
    bounds.bucket = TokenBucket(1, 0, 0)
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, PROBE_SECONDS)
    bounds.bucket = TokenBucket(1, 1, 0)
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, PROBE_SECONDS) is None


def test_refreshes_are_bounded() -> None:
    bounds = full()
    bounds.in_flight[LookupKind.REFRESH] = throttle.MAX_IN_FLIGHT[LookupKind.REFRESH] - 1
    assert bounds.reserve_refresh(0)
    bounds.in_flight[LookupKind.REFRESH] += 1
    assert not bounds.reserve_refresh(0)


def test_a_silent_platform_gets_one_refresh_at_a_time() -> None:
    bounds = full()
    for _ in range(FAILURES_TO_OPEN):
        bounds.breaker.record_failure("away", False, 0)
    assert bounds.reserve_refresh(PROBE_SECONDS)
    assert not bounds.reserve_refresh(PROBE_SECONDS)
    assert bounds.reserve_lookup(LookupKind.UNKNOWN, PROBE_SECONDS) is None
    assert bounds.reserve_refresh(2 * PROBE_SECONDS)


def test_refusals_are_reported_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    bounds = full(100)
    bounds.reserve_lookup(LookupKind.UNKNOWN, 100)
    for _ in range(1000):
        bounds.reserve_lookup(LookupKind.UNKNOWN, 100)
    bounds.bucket = TokenBucket(1, 0, 100 + LOG_INTERVAL_SECONDS)
    bounds.reserve_lookup(LookupKind.UNKNOWN, 100 + LOG_INTERVAL_SECONDS)
    text = "unknown domains are deferred to protect the platform, {} since the last such line"
    assert [record.getMessage() for record in caplog.records] == [
        f"{text.format(1)} (over 1 unknown domains a second)",
        f"{text.format(1000)} (over 1 unknown domains a second)",
    ]
