"""What the tests share with each other and with the benchmarks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator

PATIENCE = 20.0  # seconds until a test fails; only a defect makes anything take so long
POLL_SECONDS = 0.01


def free_port() -> int:
    """Return a TCP port on which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_true(condition: Callable[[], object]) -> Iterator[None]:
    """Yield between two evaluations of a condition, until it holds or the deadline is over."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        yield


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    for _ in _until_true(condition):
        time.sleep(POLL_SECONDS)


async def eventually_async(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, while the event loop continues."""
    for _ in _until_true(condition):
        await asyncio.sleep(POLL_SECONDS)


class NullStore:
    """A store that stores nothing."""

    def save(self, domain: str, age_seconds: float = 0.0) -> None:
        """Ignore the domain."""

    delete = save
