"""Postfix's queue: what waits for the mailbox.

Names are read, not messages, so that a large queue costs little. With long queue IDs (postconf(5),
enable_long_queue_ids) a name begins with the time of arrival: seconds in base 52, then
microseconds in four digits, then "z" and the inode in base 51.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oempro_mx.model import Finding, fail, ok, warn
from oempro_mx.settings import Settings
from oempro_mx.text import duration

SPOOL = Path("/var/spool/postfix")
WAITING = ("maildrop", "incoming", "active", "deferred")

_DIGITS = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"
_LONG_NAME = re.compile(rf"([{_DIGITS}]{{6,}})[{_DIGITS}]{{4}}z[{_DIGITS[:-1]}]+")


class Waiting(NamedTuple):
    """The messages in some of the queue's directories."""

    messages: int
    oldest: tuple[float, str] | None  # time of arrival, name


def arrival(name: str) -> float | None:
    """Return when a message arrived, in seconds since 1970; None if its name does not say it."""
    found = _LONG_NAME.fullmatch(name)
    if found is None:
        return None
    seconds = 0
    for digit in found[1]:
        seconds = seconds * len(_DIGITS) + _DIGITS.index(digit)
    return seconds


def waiting(spool: Path, directories: tuple[str, ...]) -> Waiting:
    """Return what is in the directories now."""
    count, oldest = 0, None
    for directory in directories:
        for folder, _, names in os.walk(spool / directory):
            for name in names:
                count += 1
                arrived = arrival(name)
                if arrived is None:  # of maildrop
                    try:
                        arrived = Path(folder, name).stat().st_mtime
                    except FileNotFoundError:  # it has moved on
                        continue
                oldest = min(oldest or (arrived, name), (arrived, name))
    return Waiting(count, oldest)


def reason(spool: Path, name: str) -> str:
    """Return why a message was deferred last: bounce(8) keeps it beside the queue."""
    for folder, _, names in os.walk(spool / "defer"):
        if name in names:
            try:
                text = Path(folder, name).read_text(errors="replace")
            except FileNotFoundError:
                break
            found = re.findall(r"(?m)^reason=(.+)$", text)
            if found:
                return str(found[-1])
    return "it was not deferred"


def look(settings: Settings, spool: Path = SPOOL) -> Iterator[Finding]:
    """Judge the age of what waits, and see what an operator has put on hold."""
    count, oldest = waiting(spool, WAITING)
    if oldest is None:
        yield ok("queue", "empty")
    else:
        age = time.time() - oldest[0]
        seen = f"{count} messages wait for the mailbox, the oldest for {duration(age)}"
        if age > settings.queue_minutes * 60:
            yield fail("queue", f"{seen}: {reason(spool, oldest[1])}", "postqueue -f")
        else:
            yield ok("queue", seen)
    held = waiting(spool, ("hold",)).messages
    if held:
        yield warn("queue", f"{held} messages are on hold", "postsuper -H ALL")
    damaged = waiting(spool, ("corrupt",)).messages
    if damaged:
        seen = f"{damaged} damaged messages are in {spool}/corrupt"
        yield warn("queue", seen, f"ls -l {spool}/corrupt")
