from __future__ import annotations

from collections.abc import Callable

import pytest

from mx_validator.cache import (
    REFRESH_RETRY_SECONDS,
    SCAN_LIMIT,
    DenialStreak,
    KnownGoodCache,
    NegativeCache,
    known_good_capacity,
)


def test_denied_drops_the_least_recently_used() -> None:
    denied = NegativeCache(max_domains=3)
    for domain in ("a", "b", "c"):
        denied.add(domain, 0)
    denied.age("a", 60, 1)
    denied.add("b", 1)
    denied.add("d", 1)
    assert [domain for domain in "abcd" if denied.age(domain, 60, 1) is not None] == ["a", "b", "d"]
    assert len(denied) == 3


def test_denied_lasts_for_its_ttl() -> None:
    denied = NegativeCache()
    denied.add("a", 10)
    assert denied.age("a", 60, 69) == 59
    assert denied.age("a", 60, 70) is None
    assert len(denied) == 0
    assert denied.age("never", 60, 70) is None


def test_denied_forgets() -> None:
    denied = NegativeCache()
    denied.add("a", 0)
    denied.add("b", 0)
    assert denied.remove("a")
    assert not denied.remove("a")
    denied.clear()
    assert len(denied) == 0


@pytest.fixture
def known() -> KnownGoodCache:
    known = KnownGoodCache(max_domains=3)
    known.load([("a", 10.0), ("b", 20.0)], {})
    return known


def test_moments_are_whole_seconds_that_are_shared() -> None:
    known = KnownGoodCache()
    known.load([("x", 7.2), ("y", 7.9), ("z", -0.5)], {})
    assert known.confirmed_at("x") == 7.0
    assert known.confirmed_at("x") is known.confirmed_at("y")
    known.load([("u", 7.0), ("v", 8.0), ("w", 8.0)], {})
    assert known.confirmed_at("v") == 8.0
    assert known.confirmed_at("v") is known.confirmed_at("w")
    assert known.confirmed_at("z") == -1.0


def test_oldest_and_newest(known: KnownGoodCache) -> None:
    assert (known.oldest(), known.newest()) == (10, 20)
    known.confirm("a", 30)
    assert (known.oldest(), known.newest()) == (20, 30)
    assert list(known.items()) == [("b", 20), ("a", 30)]
    empty = KnownGoodCache()
    assert (empty.oldest(), empty.newest()) == (None, None)


def test_when_full_the_longest_unconfirmed_goes(known: KnownGoodCache) -> None:
    assert known.confirm("c", 30) == []
    known.confirm("a", 40)
    assert known.confirm("d", 50) == ["b"]
    assert len(known) == 3
    assert known.confirmed_at("b") is None


def test_when_full_an_unused_domain_goes_first(known: KnownGoodCache) -> None:
    known.confirm("c", 30)
    known.confirm_without_mail("b", 40)
    assert known.confirm("d", 50) == ["b"]
    assert known.confirm("e", 60) == ["a"]
    known.confirm_without_mail("e", 70)
    assert len(known) == 3


def test_when_too_many_are_loaded_those_that_are_too_many_go() -> None:
    known = KnownGoodCache(max_domains=2)
    entries = [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)]
    assert known.load(entries, {"b": 0.0}) == ["b", "a"]
    assert list(known.items()) == [("c", 3), ("d", 4)]


@pytest.mark.parametrize(
    ("host_bytes", "domains"),
    [(2**40, 2_000_000), (2**30, 268_435), (2**20, 50_000)],
)
def test_the_bound_fits_the_memory_of_the_host(host_bytes: int, domains: int) -> None:
    assert known_good_capacity(host_bytes) == domains


def test_only_what_is_older_is_dropped(known: KnownGoodCache) -> None:
    known.load([("u", 15.0)], {"u": 5.0})
    assert known.expired(10) == []
    assert known.expired(11) == ["a"]
    assert known.expired(16) == ["a", "u"]
    assert KnownGoodCache().expired(11) == []


# -- unused domains -----------------------------------------------------------


def test_a_domain_that_is_confirmed_without_a_mail_is_unused(known: KnownGoodCache) -> None:
    assert known.confirm_without_mail("a", 30) == 10  # its last mail was followed by a confirmation
    assert known.confirmed_at("a") == 30
    assert known.is_unused("a")
    assert list(known.items()) == [("b", 20), ("a", 30)]
    assert (known.oldest(), known.newest()) == (20, 30)
    assert known.confirm_without_mail("a", 40) == 10
    known.record_mail("a", 50)
    known.record_mail("b", 50)
    assert known.confirm_without_mail("a", 60) == 50
    known.confirm("a", 70)
    assert known.confirmed_at("a") == 70
    assert not known.is_unused("a")
    assert len(known) == 2
    assert known.confirm_without_mail("never", 80) is None
    assert len(known) == 2


def test_an_unused_domain_can_be_dropped(known: KnownGoodCache) -> None:
    known.confirm_without_mail("a", 30)
    assert known.remove("a")
    assert not known.remove("a")
    assert known.confirmed_at("a") is None


def test_unused_domains_are_asked_about_while_they_had_mail() -> None:
    known = KnownGoodCache()
    known.load([("u", 5.0), ("v", 6.0), ("w", 90.0)], {"u": 4.0, "v": 3.0, "w": 1.0})
    assert known.due_stale(7, 4, 100) == ["u"]
    assert known.due_stale(7, 3, 100) == ["u", "v"]


def test_those_left_alone_do_not_stand_before_others() -> None:
    known = KnownGoodCache()
    names = [str(number) for number in range(100)]
    known.load([(name, 5.0) for name in names], dict.fromkeys(names[:99], 1.0) | {"99": 4.0})
    assert [known.due_stale(7, 4, 100) for _ in range(5)][-1] == ["99"]


@pytest.mark.parametrize(
    "end",
    [
        lambda known: known.record_failed_refresh("a", 180),
        lambda known: known.confirm("a", 180),
        lambda known: known.remove("a"),
        lambda known: known.reset_refreshes(),
    ],
)
def test_denials_count_from_the_first_in_a_row(
    end: Callable[[KnownGoodCache], object], known: KnownGoodCache
) -> None:
    assert known.record_denial("a", 100, 160, 60) == DenialStreak(100, 100, 1, 160)
    assert known.record_denial("a", 160, 220, 60) == DenialStreak(100, 160, 2, 220)
    end(known)
    assert known.due_denied(220) == []
    assert known.record_denial("a", 200, 260, 60) == DenialStreak(200, 200, 1, 260)


def test_denials_with_a_gap_between_them_are_not_in_a_row(known: KnownGoodCache) -> None:
    known.record_denial("a", 100, 160, 60)
    assert known.record_denial("a", 160, 220, 60).number == 2
    assert known.record_denial("a", 221, 281, 60) == DenialStreak(221, 221, 1, 281)


@pytest.mark.parametrize(
    ("doubt", "pause"),
    [
        (lambda known: known.record_denial("a", 100, 130, 60), 30),
        (lambda known: known.record_failed_refresh("a", 100), REFRESH_RETRY_SECONDS),
    ],
)
def test_after_a_doubt_there_is_a_pause(
    doubt: Callable[[KnownGoodCache], object], pause: float, known: KnownGoodCache
) -> None:
    assert known.may_refresh("a", 100)
    doubt(known)
    assert not known.may_refresh("a", 100 + pause - 1)
    assert known.may_refresh("a", 100 + pause)
    assert known.may_refresh("b", 100)


def test_due_is_what_is_old(known: KnownGoodCache) -> None:
    assert known.due_stale(10, 0, 100) == []
    assert known.due_stale(11, 0, 100) == ["a"]
    known.record_failed_refresh("a", 100)
    assert known.due_stale(11, 0, 100) == []
    assert known.due_stale(11, 0, 110) == ["a"]


def test_due_is_what_is_denied(known: KnownGoodCache) -> None:
    known.record_failed_refresh("a", 100)  # not due: its next mail causes a refresh
    known.record_denial("b", 100, 160, 60)
    assert known.due_denied(159) == []
    assert known.due_denied(160) == ["b"]


def test_due_finds_the_denied_behind_many_that_could_not_be_asked_about() -> None:
    known = KnownGoodCache()
    known.load(((str(number), 0.0) for number in range(100)), {})
    for number in range(99):
        known.record_failed_refresh(str(number), 0)
    known.record_denial("99", 0, 60, 60)
    assert known.due_denied(60) == ["99"]


def test_nothing_is_due_of_what_was_dropped(known: KnownGoodCache) -> None:
    known.record_denial("a", 100, 160, 60)
    known.remove("a")
    assert known.due_denied(160) == []


def test_a_confirmation_ends_a_pause(known: KnownGoodCache) -> None:
    known.record_failed_refresh("a", 100)
    known.confirm("a", 101)
    assert known.may_refresh("a", 102)


def test_due_begins_with_what_was_asked_longest_ago(known: KnownGoodCache) -> None:
    known.record_denial("a", 0, 10, 60)
    known.record_denial("b", 0, 10, 60)
    known.record_denial("a", 10, 20, 60)
    assert known.due_denied(20) == ["b", "a"]


def test_due_looks_at_few() -> None:
    known = KnownGoodCache()
    known.load(((str(number), 0.0) for number in range(100)), {})
    for number in range(100):
        known.record_denial(str(number), 0, 0, 60)
    assert len(known.due_denied(1)) == SCAN_LIMIT
    assert len(known.due_stale(1, 0, 1)) == SCAN_LIMIT
