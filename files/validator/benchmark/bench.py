#!/usr/bin/env python3
"""Measures the validator next to the limit, on this machine, in one run.

    python benchmark/bench.py [--seconds 1] [--rounds 9] [--json FILE]

The servers run on one core, and what asks them on another. Every round measures each server once,
so that a busy minute of the machine hits them alike; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT / "src"), str(PROJECT / "tests")]

from mx_validator.store import SqliteStore  # noqa: E402 - the line above says where it is
from support import free_port  # noqa: E402 - the same

CONSTANT = "constant"  # the limit: constant_server.py
SMALL, LARGE = 10_000, 1_000_000  # known-good domains
CONNECTIONS = (1, 4, 100)
REQUESTS = 100_000  # different ones, sent in random order
SERVER_CORE, CLIENT_CORE = 0, 1
START_SECONDS = 120.0

# What Postfix 3.10 sends when a bounce comes in over TLS.
REQUEST = (
    "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n"
    "client_address=192.0.2.77\nclient_name=mail-out-7.provider.example\nclient_port=38412\n"
    "reverse_client_name=mail-out-7.provider.example\nserver_address=203.0.113.5\n"
    "server_port=25\nhelo_name=mail-out-7.provider.example\nsender=\n"
    "recipient={recipient}\nrecipient_count=0\nqueue_id=\ninstance={instance}\n"
    "size=4211\netrn_domain=\nstress=\nsasl_method=\nsasl_username=\nsasl_sender=\nccert_subject=\n"
    "ccert_issuer=\nccert_fingerprint=\nccert_pubkey_fingerprint=\n"
    "encryption_protocol=TLSv1.3\nencryption_cipher=TLS_AES_256_GCM_SHA384\n"
    "encryption_keysize=256\npolicy_context=\ncompatibility_level=3.6\nmail_version=3.10.5\n\n"
)


def domain(number: int) -> str:
    """Return a domain of the usual length; each number gives another one."""
    return f"bounce.customer{number:07d}.example"


def requests(domains: int) -> list[bytes]:
    """Requests for one message each, with a VERP address at one of the first `domains` domains."""
    chosen = random.Random(1)
    return [
        REQUEST.format(
            recipient=f"bounce+{number}-joe.doe=example.net@{domain(chosen.randrange(domains))}",
            instance=f"7a3f.6921b0c4.{number:x}.0",
        ).encode()
        for number in range(REQUESTS)
    ]


@dataclass(frozen=True)
class RunningServer:
    """A server and its process."""

    name: str
    socket: Path
    process: subprocess.Popen[bytes]
    start_seconds: float
    requests: list[bytes]

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory_mb(self) -> float:
        """Its private memory, in MB of a million bytes."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        private = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
        return sum(private) * 1024 / 1e6


@contextlib.contextmanager
def started(
    name: str, path: Path, command: list[str], asked: list[bytes]
) -> Iterator[RunningServer]:
    """Start a server, and wait for its first reply."""
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),  # noqa: PLW1509 - no threads yet
        stderr=(path.parent / f"{name}.log").open("wb"),
    )
    try:
        while not answers(path, asked[0]):
            if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                log = (path.parent / f"{name}.log").read_text()
                raise SystemExit(f"{name} does not answer:\n{log}")
            time.sleep(0.005)
        yield RunningServer(name, path, process, time.monotonic() - began, asked)
    finally:
        process.terminate()
        process.wait()


def answers(path: Path, request: bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(START_SECONDS)
        try:
            connection.connect(str(path))
        except OSError:
            return False
        connection.sendall(request)
        reply = connection.recv(100)
        if reply not in {b"", b"action=OK\n\n"}:
            raise SystemExit(f"unexpected answer: {reply!r}")
        return reply != b""


@dataclass(frozen=True)
class Sample:
    """One measurement of one server."""

    per_second: float
    p50_us: float
    p99_us: float
    cpu_us: float  # of the server's time, for each lookup


def measure(server: RunningServer, connections: int, seconds: float) -> Sample:
    """Send requests over so many connections, one at a time on each, as Postfix does."""
    asked = server.requests
    times: list[int] = []
    sent = [0] * connections
    poll = select.epoll()
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(connections)]
        for connection in sockets:
            connection.connect(str(server.socket))
            poll.register(connection, select.EPOLLIN)
        by_number = {connection.fileno(): (n, connection) for n, connection in enumerate(sockets)}
        clock = time.perf_counter_ns
        position = 0
        cpu = server.cpu_seconds()
        began = clock()
        ends = began + int(seconds * 1e9)
        for n, connection in enumerate(sockets):
            sent[n] = clock()
            connection.sendall(asked[position])
            position += 1
        while (now := clock()) < ends:
            for number, _ in poll.poll():
                n, connection = by_number[number]
                connection.recv(100)
                now = clock()
                times.append(now - sent[n])
                sent[n] = now
                connection.sendall(asked[position])
                position = (position + 1) % REQUESTS
        took = (now - began) / 1e9
        cpu = server.cpu_seconds() - cpu
    times.sort()
    return Sample(
        len(times) / took,
        times[len(times) // 2] / 1e3,
        times[len(times) * 99 // 100] / 1e3,
        cpu / len(times) * 1e6,
    )


def median(samples: list[Sample]) -> Sample:
    """The median of each figure."""
    columns = zip(*(asdict(sample).values() for sample in samples), strict=True)
    return Sample(*(statistics.median(column) for column in columns))


@contextlib.contextmanager
def validator(directory: Path, domains: int) -> Iterator[RunningServer]:
    """The daemon with so many known-good domains on its disk, confirmed just now."""
    directory.mkdir()
    store = SqliteStore(directory / "known-good.sqlite")
    store.start()
    for number in range(domains):
        store.save(domain(number))
    store.stop()
    (directory / "key").write_text("benchmark")
    config = directory / "mx-validator.conf"
    config.write_text(
        # No lookup is needed: all domains are known good.
        "[platform]\noempro_url = http://127.0.0.1:9/\n"
        f"oempro_admin_api_key_file = {directory}/key\n"
        "api_rate_per_second = 20\napi_burst = 200\n"
        "[cache]\nallow_ttl_seconds = 86400\ndeny_ttl_seconds = 60\ndeny_grace_seconds = 900\n"
        f"[known_good]\nfile = {directory}/known-good.sqlite\ndays = 7\n"
        f"[server]\nsocket = {directory}/policy\n"
        f"[metrics]\naddress = 127.0.0.1\nport = {free_port()}\n"
    )
    command = [sys.executable, "-m", "mx_validator", "serve", "--config", str(config)]
    with started(
        f"validator-{domains}", directory / "policy", command, requests(domains)
    ) as server:
        yield server


def main() -> int:
    """Measure, print tables, and write the figures as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of one sample (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of all samples (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        limit = [sys.executable, str(Path(__file__).with_name("constant_server.py"))]
        path = directory / CONSTANT
        servers = [
            stack.enter_context(started(CONSTANT, path, [*limit, str(path)], requests(SMALL)))
        ]
        servers += [
            stack.enter_context(validator(directory / str(domains), domains))
            for domains in (SMALL, LARGE)
        ]
        samples: dict[tuple[int, str], list[Sample]] = {}
        for _ in range(options.rounds):
            for connections in CONNECTIONS:
                for server in servers:
                    sample = measure(server, connections, options.seconds)
                    samples.setdefault((connections, server.name), []).append(sample)
        results = {key: median(found) for key, found in samples.items()}
        report(results, servers)
        if options.json:
            options.json.write_text(json.dumps(figures(results, servers), indent=2))
    return 0


def report(results: dict[tuple[int, str], Sample], servers: list[RunningServer]) -> None:
    """Print the tables."""
    print(f"{'server':20}{'connections':>12}{'lookups/s':>11}{'of limit':>9}", end="")
    print(f"{'p50 us':>9}{'p99 us':>9}{'CPU us':>8}")
    for (connections, name), sample in results.items():
        of_limit = sample.per_second / results[connections, CONSTANT].per_second
        print(f"{name:20}{connections:12}{sample.per_second:11.0f}{of_limit:9.2f}", end="")
        print(f"{sample.p50_us:9.1f}{sample.p99_us:9.1f}{sample.cpu_us:8.2f}")
    print()
    for connections in CONNECTIONS:
        small, large = (results[connections, f"validator-{n}"].cpu_us for n in (SMALL, LARGE))
        print(
            f"from {SMALL} to {LARGE} known-good domains, {connections} connections:"
            f" {large - small:+.2f} us CPU per lookup"
        )
    print()
    for server in servers[1:]:
        print(
            f"{server.name}: {server.memory_mb():.0f} MB,"
            f" first answer {server.start_seconds:.2f} s after the start"
        )


def figures(
    results: dict[tuple[int, str], Sample], servers: list[RunningServer]
) -> dict[str, object]:
    """Return all figures, for JSON."""
    return {
        "lookups": [
            {"server": name, "connections": connections, **asdict(sample)}
            for (connections, name), sample in results.items()
        ],
        "servers": [
            {
                "server": server.name,
                "memory_mb": server.memory_mb(),
                "start_seconds": server.start_seconds,
            }
            for server in servers
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
