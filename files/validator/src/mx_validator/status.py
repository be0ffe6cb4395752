"""How the daemon and the platform are at one moment, for operators and for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mx_validator.decider import Decider, Source
from mx_validator.queue_space import Room
from mx_validator.store import Store
from mx_validator.throttle import Limits


@dataclass(frozen=True)
class Status:
    """One look at everything. Moments are given as seconds ago; None is never, or not now."""

    up_seconds: float
    last_verdict_seconds: float | None  # since the platform's last verdict
    failing_seconds: float | None  # since the first of its failures in a row
    trouble: str  # what the last of them was
    key_refused: bool
    breaker_open: bool
    questions: int  # to the platform, under way
    known_good: int
    oldest_seconds: float | None  # since the known-good domain was confirmed that waits longest
    newest_seconds: float | None
    known_good_days: int
    denied: int
    store_unwritten: int  # domains that wait to be written
    store_failing_seconds: float | None
    store_trouble: str | None
    store_damaged: bool  # found since the start; written anew unless there is a trouble
    store_lost: int | None  # domains that could not be read then; None: not known how many
    queue_free_inodes: int | None  # of the mail queue's file system, if it counts them
    queue_short: bool  # of them, so that no mail is taken
    lag_seconds: float  # by which the event loop was late when it last looked

    @property
    def platform_up(self) -> bool | None:
        """Whether the platform's last answer was a verdict; None if it was not asked yet."""
        if self.failing_seconds is not None:
            return False
        return None if self.last_verdict_seconds is None else True


class Observer:
    """Looks at the daemon's parts. Belongs to their event loop."""

    def __init__(
        self,
        decider: Decider,
        limits: Limits,
        store: Store,
        room: Room,
        lag_seconds: Callable[[], float],
    ) -> None:
        self._decider = decider
        self._limits = limits
        self._store = store
        self._room = room
        self._lag_seconds = lag_seconds
        self._started = time.monotonic()

    def look(self) -> Status:
        """Return how things are now."""
        now = time.monotonic()
        health = self._limits.breaker.health
        known_good = self._decider.known_good
        return Status(
            up_seconds=now - self._started,
            last_verdict_seconds=_since(health.last_verdict, now),
            failing_seconds=_since(health.failing_since, now),
            trouble=health.trouble,
            key_refused=health.key_refused,
            breaker_open=self._limits.breaker.is_open,
            questions=sum(self._limits.under_way.values()),
            known_good=len(known_good),
            oldest_seconds=_since(known_good.oldest(), now),
            newest_seconds=_since(known_good.newest(), now),
            known_good_days=round(self._decider.times.known_good / 86400),
            denied=len(self._decider.denied),
            store_unwritten=self._store.unwritten,
            store_failing_seconds=_since(self._store.trouble_since, time.time()),
            store_trouble=self._store.trouble,
            store_damaged=self._store.damaged,
            store_lost=self._store.lost,
            queue_free_inodes=self._room.free_inodes,
            queue_short=self._room.is_short,
            lag_seconds=self._lag_seconds(),
        )

    def answers(self) -> Mapping[tuple[str, Source], int]:
        """Return how many answers there were so far, by verdict and source."""
        return self._decider.answers.copy()


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(0.0, now - moment)
