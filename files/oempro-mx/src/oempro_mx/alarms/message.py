"""What is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from oempro_mx.alarms.levels import FAILING, LEVELS, WELL
from oempro_mx.model import Finding, State, ok
from oempro_mx.text import lines, listed

STATES = {WELL: State.OK, LEVELS[State.WARN]: State.WARN, FAILING: State.FAIL}


@dataclass(frozen=True)
class Message:
    """Changes of a host's status."""

    host: str
    state: str  # of the whole host: OK, WARN or FAIL
    changes: list[Finding]  # as they are now

    def as_text(self) -> str:
        """Return it for people: a heading, and the lines of the status that have changed."""
        return "\n".join([f"{self.host}: {self.state}", *lines(self.changes, colour=False)]) + "\n"

    def as_json(self) -> str:
        """Return it for programs; it has the text, too."""
        values = {"host": self.host, "state": self.state, "changes": listed(self.changes)}
        return json.dumps({**values, "text": self.as_text()})


def message(
    host: str, told: Mapping[str, int], now: Mapping[str, int], findings: Mapping[str, Finding]
) -> Message:
    """Return what has changed from what was told to what is settled now."""
    changed = [name for name in {**now, **told} if told.get(name, WELL) != now.get(name, WELL)]
    worst = max(now.values(), default=WELL)
    changes = [_as_told(name, now, findings) for name in sorted(changed)]
    return Message(host, STATES[worst].value, changes)


def _as_told(name: str, now: Mapping[str, int], findings: Mapping[str, Finding]) -> Finding:
    found = findings.get(name, ok(name, "no longer seen"))
    if LEVELS[found.state] >= now.get(name, WELL):
        return found
    # It went away in this very look, and may come back: two of the last three had it.
    seen = f"it was so until now: {found.seen}"
    return Finding(name, STATES[now[name]], seen, "oempro-mx status")
