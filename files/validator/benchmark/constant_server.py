"""The limit: a plain asyncio server that answers every request with the same bytes, unparsed."""

from __future__ import annotations

import asyncio
import sys

REPLY = b"action=OK\n\n"


class Constant(asyncio.Protocol):
    """One connection. It counts the ends of requests, and parses nothing else."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(REPLY * data.count(b"\n\n"))


async def main(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Constant, path)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
