"""The platform and what is known of its domains, as the validator sees them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from oempro_mx.commands import run, run_any
from oempro_mx.model import Finding, fail, ok, warn
from oempro_mx.settings import Settings
from oempro_mx.text import duration

SLOW_SECONDS = 3.0  # of a lookup; Postfix waits for ten
AGED = 0.8  # the part of the days for which a domain is known good
LATE_SECONDS = 1.0  # of the event loop
# What no time mends: a run of the playbook fails with these.
API_KEY = "API key"
URL = "oempro_url"

_TEMPFAIL = 75
# Of the directory of the known-good domains: who may write there, and what room there is.
_REPAIR = "chown --recursive mx-validator: /var/lib/mx-validator && df -h /var/lib/mx-validator"


def look(settings: Settings) -> Iterator[Finding]:
    """Let the validator ask the platform about a made-up name, and read its status."""
    # Whatever the answer is: without mail nobody may have asked for days. Of a new name nothing is
    # cached.
    run_any("mx-validator", "check", f"{secrets.token_hex(4)}.{settings.hostname}")
    status = json.loads(run("mx-validator", "status", "--json", codes=(0, _TEMPFAIL)))
    yield from judge(status, settings)


def judge(status: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    """Judge the validator's status."""
    yield _platform(status, settings)
    yield _known_good(status)
    if status["queue_short"]:
        free = status["queue_free_inodes"]
        seen = f"every sender is told 452: only {free} free inodes for the queue"
        yield fail("inodes", seen, "df -i /var/spool/postfix")
    if status["lag_seconds"] > LATE_SECONDS:
        seen = f"its event loop is {status['lag_seconds']:.1f} s late: the host is too busy"
        yield warn("validator", seen, "top -b -n 1 | head -n 20")


def _platform(status: dict[str, Any], settings: Settings) -> Finding:
    again = f"mx-validator check {settings.hostname}"
    if status["key_refused"]:
        seen = (
            f"the API key is refused for {duration(status['failing_seconds'])}: unknown domains get"
        )
        remedy = f"{settings.playbook} --tags validator"
        return fail(API_KEY, f"{seen} 451. Put the right one into vault.yml, and run", remedy)
    if status["failing_seconds"] is not None:
        seen = f"no verdict for {duration(status['failing_seconds'])}: {status['last_error']}"
        if "a redirect to" in status["last_error"]:
            return fail(URL, f"{seen}, and run", f"{settings.playbook} --tags validator")
        return fail("platform", f"{seen}. Unknown domains get 451", again)
    seconds = status["lookup_seconds"]
    if seconds is None:
        return warn("platform", "it has not been asked yet", again)
    seen = f"answers in {seconds:.2f} s; the API key is accepted"
    return (
        warn("platform", f"{seen}. That is slow", again)
        if seconds > SLOW_SECONDS
        else ok("platform", seen)
    )


def _known_good(status: dict[str, Any]) -> Finding:
    name = "known good"
    if status["store_last_error"] is not None:
        seen = f"{status['store_unwritten']} domains are not on disk: {status['store_last_error']}"
        return fail(name, f"{seen}. A restart would forget them", _REPAIR)
    oldest, days = status["oldest_seconds"], status["known_good_days"]
    seen = f"{status['known_good']} domains"
    if oldest is not None:
        seen += f", the oldest confirmed {duration(oldest)} ago, of {days} d"
    if status["store_damaged"]:
        lost = "an unknown number" if status["store_lost"] is None else status["store_lost"]
        seen = f"the file was damaged and written anew, {lost} of them were lost; {seen}"
        return warn(name, seen, "supervisorctl restart mx-validator")
    if oldest is not None and days and oldest > AGED * days * 86400:
        return warn(name, f"{seen}. After that it gets 451", "mx-validator domains | sort | head")
    return ok(name, f"{seen}; all are on disk")
