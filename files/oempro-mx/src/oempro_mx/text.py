"""Durations and sizes in words, and the lines of the status."""

from __future__ import annotations

import json
from collections.abc import Iterable

from oempro_mx.model import Finding, State

COLOURS = {State.OK: 32, State.WARN: 33, State.FAIL: 31, State.COULD_NOT_LOOK: 35}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_NAME_WIDTH = 14
_STATE_WIDTH = len(State.COULD_NOT_LOOK.value)


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two."""
    for length, unit in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def size(count: float) -> str:
    """Return a number of bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def lines(findings: Iterable[Finding], colour: bool) -> list[str]:
    """Return the status for people: a line each, and below it the command that mends it."""
    found = []
    for finding in findings:
        state = f"{finding.state.value:{_STATE_WIDTH}}"
        if colour:
            state = f"\x1b[{COLOURS[finding.state]}m{state}\x1b[0m"
        seen = " ".join(_printable(finding.seen).split())
        found.append(f"{state}  {finding.name:{_NAME_WIDTH}}  {seen}")
        indent = " " * (_STATE_WIDTH + _NAME_WIDTH + 4)
        found += [f"{indent}-> {remedy}" for remedy in finding.remedy.splitlines()]
    return found


def listed(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Return findings as they stand in JSON."""
    return [
        {"name": each.name, "state": each.state.value, "seen": each.seen, "remedy": each.remedy}
        for each in findings
    ]


def as_json(host: str, findings: Iterable[Finding]) -> str:
    """Return the status for programs."""
    return json.dumps({"host": host, "findings": listed(findings)}, indent=2)


def _printable(text: str) -> str:
    """Return text that cannot command a terminal: parts of it come from mail and other servers."""
    return "".join(character if character.isprintable() else " " for character in text)
