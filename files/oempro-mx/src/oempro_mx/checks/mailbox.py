"""The mailbox: what waits for the platform, and when the platform came last."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from oempro_mx.commands import run_any
from oempro_mx.model import Finding, fail, ok
from oempro_mx.settings import Settings
from oempro_mx.text import duration

LOGS = (Path("/var/log/dovecot.log"), Path("/var/log/dovecot.log.1"))
TAIL_BYTES = 16 * 1024 * 1024  # of each log; a busy platform is in the last lines

_TIME = r"(?m)^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) "
_LOGIN = _TIME + r"(imap|pop3)-login: Info: (?:Login|Logged in): user=<%s>"
_DELETION = _TIME + r"(imap|pop3)\(.* (?:expunged|del)=[1-9]"


def last(pattern: str, log: str, now: float) -> str | None:
    """Return how long ago a line was written last, and by which protocol."""
    found = re.findall(pattern, log)
    if not found:
        return None
    written, protocol = found[-1]
    then = datetime.strptime(written, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return f"{duration(now - then.timestamp())} ago ({protocol})"


def visits(username: str, logs: tuple[Path, ...], now: float) -> str:
    """Return in words when the platform logged in and deleted last, as far as the logs tell."""
    seen: dict[str, str | None] = {"login": None, "deletion": None}
    for path in logs:
        text = _tail(path)
        for what, pattern in (("login", _LOGIN % re.escape(username)), ("deletion", _DELETION)):
            seen[what] = seen[what] or last(pattern, text, now)
    return ", ".join(f"last {what} {when or 'never'}" for what, when in seen.items())


def status_command(username: str) -> tuple[str, ...]:
    """Return the command that counts the messages of the inbox and says when the oldest came."""
    fields = "messages firstsaved"
    return ("doveadm", "-f", "json", "mailbox", "status", "-u", username, fields, "INBOX")


def look(settings: Settings, logs: tuple[Path, ...] = LOGS) -> Iterator[Finding]:
    """Judge the age of the oldest message."""
    asked = status_command(settings.username)
    code, output, errors = run_any(*asked)
    if code != 0:
        last_error = "".join(errors.strip().splitlines()[-1:])
        yield fail("mailbox access", f"it does not open: {last_error}", shlex.join(asked))
        return
    (status,) = json.loads(output)
    now = time.time()
    visited = visits(settings.username, logs, now)
    if status["firstsaved"] == "never":
        yield ok("mailbox", f"empty; {visited}")
        return
    age = now - int(status["firstsaved"])
    seen = f"{status['messages']} messages, the oldest for {duration(age)}; {visited}"
    if age > settings.mailbox_minutes * 60:
        remedy = "grep -E '(imap|pop3)-login' /var/log/dovecot.log | tail"
        yield fail("mailbox", f"the platform does not fetch: {seen}", remedy)
    else:
        yield ok("mailbox", seen)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
