"""What a check finds."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from oempro_mx.settings import Settings


class State(enum.Enum):
    """How something is, in the words that are shown."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    COULD_NOT_LOOK = "COULD NOT LOOK"


@dataclass(frozen=True)
class Finding:
    """One line of the status; what is not OK has a command that mends it, or shows more."""

    name: str
    state: State
    seen: str
    remedy: str = ""


class CouldNotLookError(Exception):
    """Something could not be looked at, which says nothing about how it is."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


Check = Callable[[Settings], Iterator[Finding]]
"""Yields findings. Raises CouldNotLookError or OSError where it cannot look."""


def ok(name: str, seen: str) -> Finding:
    """Return that all is well."""
    return Finding(name, State.OK, seen)


def warn(name: str, seen: str, remedy: str) -> Finding:
    """Return that something needs the operator, while mail comes in and is read."""
    return Finding(name, State.WARN, seen, remedy)


def fail(name: str, seen: str, remedy: str) -> Finding:
    """Return that mail is held up, or about to be."""
    return Finding(name, State.FAIL, seen, remedy)
