from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from oempro_mx.checks import certificate, files, mailbox, platform, queue, space, system
from oempro_mx.model import State
from oempro_mx.settings import Settings

# Of a Postfix that listed this name with the time in `postqueue -j`.
NAME, ARRIVAL = "4jbWG20LRKzDCkV", 1795778506
DAY = 86400
STATUS: dict[str, Any] = {
    "key_refused": False,
    "failing_seconds": None,
    "last_error": "",
    "lookup_seconds": 0.1,
    "known_good": 3,
    "oldest_seconds": 60.0,
    "known_good_days": 7,
    "store_last_error": None,
    "store_unwritten": 0,
    "store_damaged": False,
    "store_lost": 0,
    "queue_short": False,
    "queue_free_inodes": 70000,
    "lag_seconds": 0.0,
}


def test_arrival_is_in_the_name() -> None:
    assert queue.arrival(NAME) == ARRIVAL
    assert queue.arrival("4C1F3A") is None


def test_queue(settings: Settings, tmp_path: Path) -> None:
    assert [each.seen for each in queue.look(settings, tmp_path)] == ["empty"]
    for path in (f"deferred/4/{NAME}", f"hold/{NAME}", "corrupt/x", "maildrop/4C1F3A"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    log = tmp_path / "defer/4" / NAME
    log.parent.mkdir(parents=True)
    log.write_text("<a@b>: x\nreason=first\n\n<a@b>: x\nreason=connect to dovecot\n")
    waits, held, damaged = queue.look(settings, tmp_path)
    assert waits.state is State.FAIL if time.time() > ARRIVAL + 900 else State.OK
    assert waits.seen.startswith("2 messages wait for the mailbox, the oldest for ")
    assert waits.seen.endswith(": connect to dovecot")
    assert held.seen == "1 messages are on hold"
    assert damaged.state is State.WARN


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, "OK", "answers in 0.10 s; the API key is accepted"),
        ({"lookup_seconds": 4.0}, "WARN", "slow"),
        ({"lookup_seconds": None}, "WARN", "not been asked"),
        ({"failing_seconds": 9.0, "last_error": "502"}, "FAIL", "no verdict for 9 s: 502"),
        ({"failing_seconds": 9.0, "key_refused": True}, "FAIL", "the API key is refused"),
        ({"store_last_error": "read-only", "store_unwritten": 2}, "FAIL", "2 domains are not on"),
        ({"store_damaged": True, "store_lost": None}, "WARN", "an unknown number of them"),
        ({"oldest_seconds": 6.5 * DAY}, "WARN", "After that it gets 451"),
        ({"queue_short": True, "queue_free_inodes": 5}, "FAIL", "only 5 free inodes"),
        ({"lag_seconds": 1.5}, "WARN", "its event loop is 1.5 s late"),
    ],
)
def test_platform(settings: Settings, change: dict[str, Any], state: str, words: str) -> None:
    found = list(platform.judge({**STATUS, **change}, settings))
    assert (state, True) in {(each.state.value, words in each.seen) for each in found}


def test_what_no_time_mends_has_a_name_of_its_own(settings: Settings) -> None:
    """The playbook fails with these names, and with no other."""
    redirected = {"failing_seconds": 9.0, "last_error": "a redirect to https://a/: set oempro_url"}
    for change, name in (
        ({"failing_seconds": 9.0, "last_error": "502"}, "platform"),
        ({"failing_seconds": 9.0, "key_refused": True}, "API key"),
        (redirected, "oempro_url"),
        (redirected | {"failing_seconds": None}, "platform"),  # it was so once
    ):
        assert name in {each.name for each in platform.judge({**STATUS, **change}, settings)}


def test_last_visits(tmp_path: Path) -> None:
    new, old = tmp_path / "log", tmp_path / "log.1"
    assert mailbox.visits("catchall", (new, old), 0) == "last login never, last deletion never"
    old.write_text(
        "2026-11-27T11:22:30Z imap(catchall)<1><x>: Info: Logged out in=1 deleted=0 expunged=3 x\n"
        "2026-11-27T11:22:31Z pop3(catchall)<1><x>: Info: Logged out retr=0/0, del=0/3, size=4\n"
        "2026-11-27T11:22:32Z pop3-login: Info: Login: user=<other>, method=PLAIN\n"
    )
    new.write_text("2026-11-27T11:22:35Z imap-login: Info: Logged in: user=<catchall>, x\n")
    now = 1795778555 + 5.0
    seen = mailbox.visits("catchall", (new, old), now)
    assert seen == "last login 5 s ago (imap), last deletion 10 s ago (imap)"


@pytest.mark.parametrize(
    ("days", "left", "state"),
    [
        (90, 31, "OK"),
        (90, 17, "WARN"),
        (90, -1, "FAIL"),
        (6, 2, "OK"),
        (6, 1, "WARN"),
        (3650, 26, "OK"),
        (3650, 24, "WARN"),
    ],
)
@pytest.mark.parametrize("mode", ["acme", "provided", "selfsigned"])
def test_life_of_a_certificate(days: float, left: float, state: str, mode: str) -> None:
    life = certificate.Life(0, days * DAY)
    found = certificate.judge_life(life, (days - left) * DAY, mode, "site.yml")
    assert found.state.value == state
    assert bool(found.remedy) == (state != "OK")


@pytest.mark.parametrize(
    ("free", "free_inodes", "until_full", "state"),
    [
        (300, 90000, None, "OK"),
        (300, 90000, 90000.0, "OK"),
        (300, 90000, 3600.0, "WARN"),
        (199, 90000, None, "WARN"),
        (300, 19999, None, "WARN"),
        (99, 90000, None, "FAIL"),
        (300, 9999, None, "FAIL"),
    ],
)
def test_room(free: int, free_inodes: int, until_full: float | None, state: str) -> None:
    left = space.Room(free, free_inodes, 100000)
    assert space.judge("/var", left, 100, until_full).state.value == state


def test_time_until_full() -> None:
    assert space.seconds_left([(0, 1000)], 1000, 600, 200) == 1000
    assert space.seconds_left([(0, 1000)], 599, 600, 200) is None  # too early to say
    assert space.seconds_left([(0, 500)], 1000, 600, 200) is None
    assert space.seconds_left([], 1000, 600, 200) is None


def test_files(settings: Settings, tmp_path: Path) -> None:
    names = [tmp_path / f"main{number}.cf" for number in range(5)]
    lines = [f"1 {hashlib.sha256(b'x').hexdigest()}  {name}\n" for name in names]
    (tmp_path / "postfix-loaded").write_text("".join(lines))
    for name in names:
        name.write_text("x")
    assert [each.state for each in files.look(settings, tmp_path)] == [State.OK]
    for name in names[:3]:
        name.write_text("y")
    names[3].unlink()
    (found,) = files.look(settings, tmp_path)
    assert found.seen.startswith("4 differ")
    assert found.seen.endswith("main2.cf, ...")


def test_version(settings: Settings, tmp_path: Path) -> None:
    (found,) = system.version(settings, tmp_path / "version")
    assert found.state is State.WARN
