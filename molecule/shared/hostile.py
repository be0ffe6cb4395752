"""Hostile senders at several addresses, each with as many connections as it is given."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from shell import run
from testhost import Lab

PORT = 25
CONNECTIONS = 50  # of each address: as many as the role lets one have
RECONNECT_SECONDS = 0.2


@dataclass(frozen=True)
class Manner:
    """What is sent on each connection again and again; nothing at all keeps it idle."""

    command: bytes = b""
    pause_seconds: float = 0


NOOP = Manner(b"NOOP\r\n", 3)
JUNK = Manner(b"XYZZY\r\n", 0.2)
IDLE = Manner()


@contextlib.contextmanager
def further_addresses(lab: Lab, first: int, count: int) -> Iterator[list[str]]:
    """Give this machine addresses in the lab's network besides the gateway's."""
    found = [f"{lab.address(first + number)}/32" for number in range(count)]
    for address in found:
        run("ip", "address", "replace", address, "dev", "lo")
    try:
        yield [address.removesuffix("/32") for address in found]
    finally:
        for address in found:
            run("ip", "address", "delete", address, "dev", "lo")


class Attack(threading.Thread):
    """Connections from each source address, each made anew when the server ends it."""

    def __init__(self, target: str, manners: Mapping[str, Manner]) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._manners = manners
        self._loop = asyncio.new_event_loop()
        self.held = 0  # connections that have been greeted, and are open

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join()

    def run(self) -> None:
        tasks = [
            self._loop.create_task(self._connections(source, manner))
            for source, manner in self._manners.items()
            for _ in range(CONNECTIONS)
        ]
        self._loop.run_forever()
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connections(self, source: str, manner: Manner) -> None:
        """Open one connection after another."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    self._target, PORT, local_addr=(source, 0)
                )
                try:
                    await self._converse(reader, writer, manner)
                finally:
                    writer.close()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner
    ) -> None:
        """Say the same until the server ends it."""
        if not (await reader.readline()).startswith(b"220 "):
            return
        self.held += 1
        try:
            while manner.command:
                writer.write(manner.command)
                if not await reader.readline():
                    return
                await asyncio.sleep(manner.pause_seconds)
            await reader.read()
        finally:
            self.held -= 1
