"""The status of the daemon and the platform, for operators and for Prometheus.

Each value of the status is defined in one place: its name and type, where it is read, and the gauge
that shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple, TypeVar

from mx_validator.decider import Decider
from mx_validator.queue_space import QueueSpace
from mx_validator.store import SqliteStore
from mx_validator.throttle import Throttle

_T = TypeVar("_T")


@dataclass(frozen=True)
class Parts:
    """The parts of the daemon that a status is read from. They belong to one event loop."""

    decider: Decider
    throttle: Throttle
    store: SqliteStore
    queue_space: QueueSpace
    lag_seconds: Callable[[], float]
    started: float = field(default_factory=time.monotonic)


class Gauge(NamedTuple):
    """A metric; while its value is None, it is not shown, or shown as `if_none`."""

    name: str
    help_text: str
    if_none: float | None = None


def _value(read: Callable[[Parts, float], _T], gauge: Gauge | None = None) -> _T:
    """Define a value: how it is read, given the monotonic time, and the gauge that shows it."""
    value: _T = field(metadata={"read": read, "gauge": gauge})
    return value


@dataclass(frozen=True)
class Status:
    """All values at one moment. Times are given as seconds ago; None is never, or not now."""

    up_seconds: float = _value(
        lambda parts, now: now - parts.started,
        Gauge("up_seconds", "Seconds since the daemon started."),
    )
    platform_up: bool | None = _value(
        lambda parts, _: parts.throttle.breaker.health.is_up,
        Gauge("platform_up", "Whether the last lookup gave a verdict."),
    )
    last_verdict_seconds: float | None = _value(
        lambda parts, now: _since(parts.throttle.breaker.health.last_verdict, now)
    )
    lookup_seconds: float | None = _value(
        lambda parts, _: parts.throttle.breaker.health.lookup_seconds,
        Gauge("platform_lookup_seconds", "Duration of the last lookup."),
    )
    failing_seconds: float | None = _value(
        lambda parts, now: _since(parts.throttle.breaker.health.failing_since, now),
        Gauge(
            "platform_failing_seconds",
            "Seconds since the first of the failed lookups in a row; 0 if the last one succeeded.",
            if_none=0,
        ),
    )
    last_error: str = _value(lambda parts, _: parts.throttle.breaker.health.last_error)
    key_refused: bool = _value(
        lambda parts, _: parts.throttle.breaker.health.key_refused,
        Gauge("platform_key_refused", "Whether the platform refused the API key last."),
    )
    breaker_open: bool = _value(
        lambda parts, _: parts.throttle.breaker.is_open,
        Gauge("platform_breaker_open", "Whether the circuit breaker is open."),
    )
    lookups_in_flight: int = _value(
        lambda parts, _: sum(parts.throttle.in_flight.values()),
        Gauge("platform_questions", "Lookups in flight."),
    )
    known_good: int = _value(
        lambda parts, _: len(parts.decider.known_good),
        Gauge("known_good_domains", "Known-good domains."),
    )
    oldest_seconds: float | None = _value(
        lambda parts, now: _since(parts.decider.known_good.oldest(), now),
        Gauge(
            "known_good_oldest_seconds",
            "Age of the oldest confirmation among known-good domains that have mail.",
        ),
    )
    newest_seconds: float | None = _value(
        lambda parts, now: _since(parts.decider.known_good.newest(), now),
        Gauge("known_good_newest_seconds", "Age of the newest confirmation."),
    )
    known_good_days: int = _value(lambda parts, _: round(parts.decider.times.known_good / 86400))
    denied: int = _value(
        lambda parts, _: len(parts.decider.denied),
        Gauge("denied_domains", "Domains in the negative cache."),
    )
    store_unwritten: int = _value(
        lambda parts, _: parts.store.unwritten,
        Gauge("store_unwritten_domains", "Known-good domains that are not yet written to disk."),
    )
    store_failing_seconds: float | None = _value(
        lambda parts, _: _since(parts.store.failing_since, time.time()),
        Gauge(
            "store_failing_seconds",
            "Seconds since writing known-good domains to disk began to fail; 0 if it succeeds.",
            if_none=0,
        ),
    )
    store_last_error: str | None = _value(lambda parts, _: parts.store.last_error)
    store_damaged: bool = _value(  # a new file was written unless there is an error
        lambda parts, _: parts.store.damaged,
        Gauge(
            "store_damaged",
            "Whether the file of known-good domains was found damaged since the start.",
        ),
    )
    store_lost: int | None = _value(  # None: it is not known how many
        lambda parts, _: parts.store.lost,
        Gauge(
            "store_lost_domains",
            "Known-good domains that could not be read from the damaged file, if known.",
        ),
    )
    queue_free_inodes: int | None = _value(
        lambda parts, _: parts.queue_space.free_inodes,
        Gauge(
            "queue_free_inodes", "Free inodes of the mail queue's file system, if it counts them."
        ),
    )
    queue_short: bool = _value(
        lambda parts, _: parts.queue_space.is_short,
        Gauge("queue_short", "Whether mail is refused because too few inodes are free."),
    )
    lag_seconds: float = _value(
        lambda parts, _: parts.lag_seconds(),
        Gauge("loop_lag_seconds", "Event loop lag at the last heartbeat."),
    )

    @classmethod
    def read(cls, parts: Parts) -> Status:
        """Read all values now."""
        now = time.monotonic()
        return cls(**{value.name: value.metadata["read"](parts, now) for value in fields(cls)})

    @property
    def is_well(self) -> bool:
        """Whether nothing needs the operator."""
        return self.platform_up is not False and not self.store_last_error and not self.queue_short

    def gauges(self) -> Iterator[tuple[Gauge, float]]:
        """Yield the gauges that are shown, with their values."""
        for value in fields(self):
            gauge: Gauge | None = value.metadata["gauge"]
            if gauge is not None:
                number = getattr(self, value.name)
                shown = gauge.if_none if number is None else number
                if shown is not None:
                    yield gauge, shown


def _since(then: float | None, now: float) -> float | None:
    return None if then is None else max(0.0, now - then)
