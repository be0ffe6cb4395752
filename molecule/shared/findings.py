"""What `oempro-mx status` finds on a host."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from testinfra.host import Host

from probes import eventually

CODES = {"OK": 0, "WARN": 1, "COULD NOT LOOK": 1, "FAIL": 2}


@dataclass(frozen=True)
class Status:
    """What the command says once."""

    findings: list[dict[str, str]]

    def bad(self) -> list[dict[str, str]]:
        return [each for each in self.findings if each["state"] != "OK"]

    def of(self, name: str) -> list[dict[str, str]]:
        return [each for each in self.findings if each["name"] == name]


def look(host: Host) -> Status:
    """Run the command as an operator's monitoring does."""
    done = host.run("oempro-mx status --json")
    listed = json.loads(done.stdout)["findings"]
    assert done.rc == max(CODES[each["state"]] for each in listed)
    return Status(listed)


def found(status: Callable[[], Status], name: str, state: str, words: str) -> dict[str, str]:
    """Wait for a finding, and return it."""

    def matching() -> list[dict[str, str]]:
        return [e for e in status().of(name) if e["state"] == state and words in e["seen"]]

    return eventually(matching)[0]
