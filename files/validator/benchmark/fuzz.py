#!/usr/bin/env python3
"""Sends a million corrupted requests to a connection of the daemon, split at random.

    python benchmark/fuzz.py [--inputs 1000000] [--seed 1]

The daemon may only close the connection, and its memory must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mx_validator.cache import NegativeCache
from mx_validator.decider import CacheTimes, Decider, Stores
from mx_validator.model import LookupKind, Outcome, Verdict
from mx_validator.policy import PolicyService
from mx_validator.queue_space import QueueSpace
from mx_validator.server import PolicyServer, _PolicyConnection
from mx_validator.throttle import CircuitBreaker, Throttle, TokenBucket
from support import NullStore

# Bytes that the parser or the rules for domains treat specially, and others.
PIECES = [
    *(
        b"\n",
        b"\n\n",
        b"=",
        b"\0",
        b"\r\n",
        b"@",
        b"@@",
        b".",
        b"..",
        b"[",
        b"]",
        b" ",
        b"\xff",
        b"\xc3",
    ),
    *(b"request=", b"recipient=", b"domain=", b"smtpd_access_policy", b"mx_validator_check"),
    *(b"instance=", b"queue_id=", b"B+1@GOOD.example"),
    *(b"\nrecipient=", b"mx_validator_forget", b"xn--", b"xn--a", "ü".encode(), "。".encode()),
    *(b"a" * 64, b"." * 300, b"x" * 40_000, b"good.example", b"[192.0.2.1]", b"192.0.2.1", b"-"),
]
SEEDS = [
    b"request=smtpd_access_policy\nsender=\nrecipient=b+1@good.example\nqueue_id=\ninstance=1\n\n",
    b"recipient=b+1@good.example\nrequest=smtpd_access_policy\n\n",
    b"request=mx_validator_check\ndomain=good.example\n\n",
    b"request=mx_validator_forget\ndomain=bad.example\n\n",
]
NEGATIVE_CACHE_DOMAINS = 1000  # few, so that the cache is soon full
WARM_UP = 0.2  # part of the inputs after which memory has settled
GROWTH_BYTES = 4_000_000  # allowed after that: what the allocator keeps for itself


class FakeTransport(asyncio.Transport):
    """Checks that what is written is a reply."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not bytes(data).endswith(b"\n\n"):
            raise AssertionError(f"not a reply: {bytes(data)!r}")

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Do nothing."""

    resume_reading = pause_reading


async def deny(domain: str, kind: LookupKind) -> Outcome:  # noqa: ARG001 - the platform's side
    """A platform that owns one domain."""
    verdict = Verdict.ALLOW if domain == "good.example" else Verdict.DENY
    return Outcome(verdict, "a verdict of the fuzzer", "deny")


def corrupted_requests(chance: random.Random) -> bytes:
    """Return a few requests, with some bytes inserted, removed, or replaced."""
    data = b"".join(chance.choices(SEEDS, k=chance.randint(1, 2)))
    for _ in range(chance.randint(0, 4)):
        start = chance.randrange(len(data) + 1)
        end = start + chance.choice((0, 0, 1, 5, 30))
        data = data[:start] + chance.choice(PIECES) + data[end:]
    return data


async def fuzz(inputs: int, seed: int) -> None:
    """Send the requests. An exception of the daemon ends the run."""
    chance = random.Random(seed)
    limits = Throttle(TokenBucket(1e9, 1e9, 0.0), CircuitBreaker("none"))
    decider = Decider(
        deny, CacheTimes(300, 60, 604800, 900), limits, Stores(NullStore(), NullStore())
    )
    decider.load([("good.example", 1.0)])
    server = PolicyServer(PolicyService(decider, lambda: None, QueueSpace(Path("/"))).respond)  # type: ignore[arg-type,return-value]
    settled = 0
    decider.denied = NegativeCache(NEGATIVE_CACHE_DOMAINS)
    connection: _PolicyConnection | None = None
    for number in range(inputs):
        if connection is None or connection._transport.is_closing():
            if connection is not None:
                connection.connection_lost(None)
            connection = _PolicyConnection(server)
            connection.connection_made(FakeTransport())
        data = corrupted_requests(chance)
        middle = chance.randrange(len(data) + 1)
        for piece in (data[:middle], data[middle:]):
            if piece:
                connection.data_received(piece)
        await asyncio.sleep(0)
        if number == int(inputs * WARM_UP):
            settled = resident_bytes()
    grown = resident_bytes() - settled
    print(f"fuzz: {inputs} inputs, seed {seed}: no crash; memory grew by {grown / 1e6:.1f} MB")
    if grown > GROWTH_BYTES:
        raise SystemExit("fuzz: that is too much")


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    options = parser.parse_args()
    logging.disable()
    asyncio.run(fuzz(options.inputs, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
