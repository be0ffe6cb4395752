from __future__ import annotations

from dataclasses import replace

import pytest

from mx_validator.status import Status
from mx_validator.status_text import format_duration, format_status

WELL = Status(
    up_seconds=3 * 3600,
    platform_up=True,
    last_verdict_seconds=12.0,
    lookup_seconds=0.214,
    failing_seconds=None,
    last_error="",
    key_refused=False,
    breaker_open=False,
    lookups_in_flight=0,
    known_good=42,
    oldest_seconds=3 * 86400,
    newest_seconds=12.0,
    known_good_days=7,
    denied=3,
    store_unwritten=0,
    store_failing_seconds=None,
    store_last_error=None,
    store_damaged=False,
    store_lost=0,
    queue_free_inodes=70000,
    queue_short=False,
    lag_seconds=0.0004,
)
AWAY = replace(
    WELL,
    platform_up=False,
    failing_seconds=600.0,
    last_error="platform answered 502",
    breaker_open=True,
)
UNASKED = replace(WELL, platform_up=None, last_verdict_seconds=None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (172799, "48 h"),
        (172800, "2 d"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_all_is_well() -> None:
    assert format_status(WELL) == [
        "daemon:      up for 3 h, event loop 0.000 s late",
        "platform:    answers; last verdict 12 s ago, in 0.21 s",
        "API key:     accepted",
        "known good:  42 domains, confirmed 12 s to 3 d ago; good for 7 d without the platform",
        "on disk:     up to date",
        "mail queue:  takes mail, 70000 free inodes",
        "denied:      3 domains remembered",
    ]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (
            AWAY,
            "platform:    no verdict for 10 min: platform answered 502; asked now and then only",
        ),
        (
            replace(AWAY, breaker_open=False),
            "platform:    no verdict for 10 min: platform answered 502",
        ),
        (AWAY, "API key:     not known, for want of an answer"),
        (UNASKED, "platform:    not asked yet"),
        (
            UNASKED,
            "API key:     not known, for want of an answer",
        ),
        (
            replace(AWAY, key_refused=True),
            "API key:     REFUSED: put the right one into the API key file, and reload the daemon",
        ),
        (
            replace(WELL, known_good=0, oldest_seconds=None, newest_seconds=None),
            "known good:  0 domains; good for 7 d without the platform",
        ),
        (replace(WELL, store_unwritten=5), "on disk:     5 domains wait"),
        (
            replace(WELL, store_unwritten=5, store_last_error="full", store_failing_seconds=300.0),
            "on disk:     NOT WRITTEN for 5 min: full; 5 domains wait",
        ),
        (
            replace(WELL, store_damaged=True, store_lost=3),
            "on disk:     up to date; was damaged and written anew, 3 domains were lost",
        ),
        (
            replace(WELL, store_damaged=True, store_lost=None),
            (
                "on disk:     up to date; was damaged and written anew, an unknown number of"
                " domains were lost"
            ),
        ),
        (replace(WELL, queue_free_inodes=None), "mail queue:  takes mail"),
        (
            replace(WELL, queue_free_inodes=9, queue_short=True),
            "mail queue:  NO MAIL IS TAKEN, only 9 free inodes",
        ),
    ],
)
def test_what_is_not(status: Status, line: str) -> None:
    assert line in format_status(status)
