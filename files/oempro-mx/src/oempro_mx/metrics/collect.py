"""Writes the metrics into the node exporter's directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from oempro_mx import __version__
from oempro_mx.checks.certificate import life_of
from oempro_mx.checks.mailbox import status_command
from oempro_mx.checks.queue import SPOOL, WAITING, waiting
from oempro_mx.commands import run
from oempro_mx.metrics.log import LOG, STATE, Counts
from oempro_mx.model import CouldNotLookError
from oempro_mx.settings import Settings

FILE = "oempro-mx.prom"


def write(settings: Settings, directory: Path) -> list[str]:
    """Replace the file; return what could not be read, whose metrics are then missing.

    Raises:
        OSError: the file cannot be written.
    """
    collector = _Collector(settings)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    write_to_textfile(str(directory / FILE), registry)
    return collector.problems


class _Collector(Collector):
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.problems: list[str] = []

    def describe(self) -> list[Metric]:
        return []  # not collected until it is written

    def collect(self) -> Iterator[Metric]:
        version = GaugeMetricFamily("oempro_mx_info", "Always 1.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version
        parts: tuple[Callable[[], Iterator[Metric]], ...] = (
            queue,
            lambda: mailbox(self._settings.username),
            lambda: certificate(self._settings.certificate),
            log,
        )
        for part in parts:
            try:
                yield from list(part())
            except (CouldNotLookError, OSError, ValueError) as error:  # noqa: PERF203 - four
                self.problems.append(str(error))


def queue(spool: Path = SPOOL) -> Iterator[Metric]:
    """Read Postfix's queue."""
    messages = GaugeMetricFamily(
        "oempro_mx_queue_messages", "Messages in a directory of Postfix's queue.", labels=["queue"]
    )
    oldest = []
    for directory in (*WAITING, "hold"):
        found = waiting(spool, (directory,))
        messages.add_metric([directory], found.messages)
        if found.oldest and directory in WAITING:
            oldest.append(found.oldest[0])
    yield messages
    yield GaugeMetricFamily(
        "oempro_mx_queue_oldest_seconds",
        "For how long the oldest message has waited for the mailbox, those on hold left out.",
        max(0.0, time.time() - min(oldest)) if oldest else 0.0,
    )


def mailbox(username: str) -> Iterator[Metric]:
    """Ask Dovecot for the mailbox."""
    (status,) = json.loads(run(*status_command(username)))
    empty = status["firstsaved"] == "never"
    yield GaugeMetricFamily(
        "oempro_mx_mailbox_messages",
        "Messages that the platform has not deleted yet.",
        int(status["messages"]),
    )
    yield GaugeMetricFamily(
        "oempro_mx_mailbox_oldest_seconds",
        "For how long the oldest message has been in the mailbox.",
        0.0 if empty else max(0.0, time.time() - int(status["firstsaved"])),
    )


def certificate(file: str) -> Iterator[Metric]:
    """Read the certificate in use."""
    life = life_of(file)
    for name, value in (("begin", life.begin), ("end", life.end)):
        help_text = f"The {name} of the certificate's life, in seconds since 1970."
        yield GaugeMetricFamily(f"oempro_mx_certificate_{name}_seconds", help_text, value)


def log(file: Path = LOG, state: Path = STATE) -> Iterator[Metric]:
    """Count what Postfix has logged since the last look."""
    counts = Counts.read(state)
    counts.update(file)
    counts.write(state)
    yield CounterMetricFamily(
        "oempro_mx_messages_accepted", "Messages that senders handed over.", counts.accepted
    )
    refused = CounterMetricFamily(
        "oempro_mx_recipients_refused",
        "Refusals by reply code and enhanced code.",
        labels=["reply"],
    )
    for reply, count in counts.refused.items():
        refused.add_metric([reply], count)
    yield refused
    deliveries = CounterMetricFamily(
        "oempro_mx_deliveries", "Attempts to deliver to the mailbox.", labels=["status"]
    )
    for status, count in counts.deliveries.items():
        deliveries.add_metric([status], count)
    yield deliveries
