"""Serves `/metrics` to Prometheus, and `/healthz` to a monitoring system.

The threads of this server read nothing themselves: they ask the event loop, which thereby shows
that it runs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from mx_validator.model import OutcomeKind, Source
from mx_validator.status import Status

LOOP_TIMEOUT_SECONDS = 3.0  # for the answer of the event loop
CLIENT_TIMEOUT_SECONDS = 10  # for a client to send its request
# In seconds: from a platform nearby to the longest time of a lookup.
LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 12.0)

AnswerCounts = Mapping[tuple[str, Source], int]


class Metrics:
    """All metrics, under the names that Prometheus sees. They belong to the event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._loop = asyncio.get_running_loop()
        self._outcomes = Counter(
            "mx_validator_platform_answers",
            "Lookups at the platform, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "mx_validator_platform_answer_seconds",
            "Duration of lookups at the platform, including the wait for a thread.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )

    def record_lookup(self, outcome: OutcomeKind, seconds: float) -> None:
        """Count a lookup, and record its duration."""
        self._outcomes.labels(outcome).inc()
        self._latency.observe(seconds)

    def register(
        self, read_status: Callable[[], Status], answer_counts: Callable[[], AnswerCounts]
    ) -> None:
        """Serve the status and the counts of answers, too, both called in the event loop."""
        self.registry.register(_StatusCollector(read_status, answer_counts))

    def require_running_loop(self) -> None:
        """Return when the event loop has run. Raises TimeoutError of concurrent.futures."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(LOOP_TIMEOUT_SECONDS)


class _StatusCollector(Collector):
    """Reads the status when a thread of the HTTP server serves a request."""

    def __init__(
        self, read_status: Callable[[], Status], answer_counts: Callable[[], AnswerCounts]
    ) -> None:
        self._read_status = read_status
        self._answer_counts = answer_counts
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterator[Metric]:
        status, counts = asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(
            LOOP_TIMEOUT_SECONDS
        )
        for gauge, value in status.gauges():
            yield GaugeMetricFamily(f"mx_validator_{gauge.name}", gauge.help_text, value)
        answers = CounterMetricFamily(
            "mx_validator_answers",
            "Answers to requests, by verdict and source.",
            labels=["verdict", "source"],
        )
        for labels, count in counts.items():
            answers.add_metric(labels, count)
        yield answers

    async def _read(self) -> tuple[Status, AnswerCounts]:
        return self._read_status(), self._answer_counts()


class _MetricsServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, port: int, metrics: Metrics) -> None:
        self.metrics = metrics
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _MetricsHandler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: clients may disconnect at any time."""


class _MetricsHandler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_SECONDS
    server: _MetricsServer

    def do_GET(self) -> None:
        bodies = {"/metrics": self._metrics, "/healthz": self._health}
        path = self.path.partition("?")[0]
        if path not in bodies:
            self.send_error(404)
            return
        try:
            self._reply(200, bodies[path]())
        except concurrent.futures.TimeoutError:
            self._reply(503, b"the event loop does not answer\n")

    def _metrics(self) -> bytes:
        return generate_latest(self.server.metrics.registry)

    def _health(self) -> bytes:
        self.server.metrics.require_running_loop()
        return b"ok\n"

    def _reply(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Log nothing: it would be a line for every scrape."""


@contextlib.contextmanager
def serving(address: str, port: int, metrics: Metrics) -> Iterator[int]:
    """Serve while the block runs; yield the port. Raises OSError if that is not possible."""
    with _MetricsServer(address, port, metrics) as server:
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
