"""Serves `/metrics` to Prometheus, and `/healthz` to whatever watches over the host.

Its threads never touch the daemon's parts: they ask the event loop, which shows that it is alive.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from mx_validator.decider import OutcomeKind, Source
from mx_validator.status import Observer, Status

LOOP_SECONDS = 3.0  # for the event loop to say how things are
CLIENT_SECONDS = 10  # for a client to send its request
# In seconds: from a platform nearby to the longest that a question may take.
LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 12.0)

# Name, meaning, and how it follows from a status; nothing is shown for what is None.
_GAUGES: list[tuple[str, str, Callable[[Status], float | None]]] = [
    ("up_seconds", "Since the start of the daemon.", lambda s: s.up_seconds),
    ("platform_up", "Whether the last question brought a verdict.", lambda s: s.platform_up),
    ("platform_key_refused", "Whether the API key was refused last.", lambda s: s.key_refused),
    (
        "platform_failing_seconds",
        "Since when questions bring no verdict; 0 if they do.",
        lambda s: s.failing_seconds or 0,
    ),
    (
        "platform_breaker_open",
        "Whether the platform is spared after repeated failures.",
        lambda s: s.breaker_open,
    ),
    ("platform_questions", "Questions under way.", lambda s: s.questions),
    ("known_good_domains", "Domains that the platform once confirmed.", lambda s: s.known_good),
    (
        "known_good_oldest_seconds",
        "Since the confirmation of the domain in use that waits longest for a new one.",
        lambda s: s.oldest_seconds,
    ),
    (
        "known_good_newest_seconds",
        "Since the last confirmation of any domain.",
        lambda s: s.newest_seconds,
    ),
    ("denied_domains", "Domains remembered as denied.", lambda s: s.denied),
    (
        "store_unwritten_domains",
        "Known-good domains that wait to be written to disk.",
        lambda s: s.store_unwritten,
    ),
    (
        "store_failing_seconds",
        "Since when known-good domains cannot be written to disk; 0 if they can.",
        lambda s: s.store_failing_seconds or 0,
    ),
    (
        "store_damaged",
        "Whether the file of known-good domains was found damaged since the start.",
        lambda s: s.store_damaged,
    ),
    (
        "store_lost_domains",
        "Known-good domains that could not be read from it, if that is known.",
        lambda s: s.store_lost,
    ),
    (
        "queue_free_inodes",
        "Free inodes of the mail queue's file system, if it counts them.",
        lambda s: s.queue_free_inodes,
    ),
    ("queue_short", "Whether mail is refused for want of them.", lambda s: s.queue_short),
    ("loop_lag_seconds", "By which the event loop was late last.", lambda s: s.lag_seconds),
]


class Metrics:
    """All that is counted, under the names that Prometheus sees. Belongs to the event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes = Counter(
            "mx_validator_platform_answers",
            "Questions to the platform, by what they came to.",
            ["outcome"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "mx_validator_platform_answer_seconds",
            "How long questions to the platform took, with the wait for their turn.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def observe(self, outcome: OutcomeKind, seconds: float) -> None:
        """Count a question to the platform."""
        self._outcomes.labels(outcome).inc()
        self._latency.observe(seconds)

    def add(self, observer: Observer) -> None:
        """Show what an observer sees, too."""
        self.registry.register(_Seen(observer))


class _Seen(Collector):
    """What is not counted here but looked at when it is asked for, by another thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterator[Metric]:
        status, answers = asyncio.run_coroutine_threadsafe(self._look(), self._loop).result(
            LOOP_SECONDS
        )
        for name, meaning, value_of in _GAUGES:
            value = value_of(status)
            if value is not None:
                yield GaugeMetricFamily(f"mx_validator_{name}", meaning, value)
        counted = CounterMetricFamily(
            "mx_validator_answers",
            "Answers to Postfix, by verdict and by where it came from.",
            labels=["verdict", "source"],
        )
        for labels, count in answers.items():
            counted.add_metric(labels, count)
        yield counted

    async def _look(self) -> tuple[Status, Mapping[tuple[str, Source], int]]:
        return self._observer.look(), self._observer.answers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, port: int, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that leaves early is no event."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path not in {"/metrics", "/healthz"}:
            self.send_error(404)
            return
        try:
            body = generate_latest(self.server.registry)
        except concurrent.futures.TimeoutError:
            self._reply(503, b"the event loop does not answer\n")
            return
        self._reply(200, body if path == "/metrics" else b"ok\n")

    def _reply(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing: it would be a line for every scrape."""


@contextlib.contextmanager
def served(address: str, port: int, metrics: Metrics) -> Iterator[int]:
    """Serve while the block runs. Gives the port. Raises OSError if that is not possible."""
    with _Server(address, port, metrics.registry) as server:
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
