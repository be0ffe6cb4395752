"""Serves Postfix's connections: requests in, replies out, in the order of the requests."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from mx_validator.listener import BACKLOG
from mx_validator.protocol import ProtocolError, Request, RequestParser

# Each smtpd process holds one; Postfix runs up to 100 unless told otherwise.
MAX_CONNECTIONS = 1000
# Postfix closes after smtpd_policy_service_max_idle, 300 s, or max_ttl, 1,000 s. If we closed
# first, it could be at the moment when a request is on its way.
IDLE_SECONDS = 1200.0
SWEEP_SECONDS = 60.0  # how often idle connections are looked for
FULL_LOG_SECONDS = 60.0  # at most one line about refused connections in this time
# For answers under way when the daemon stops. Whom that is too short asks the next copy again, and
# meanwhile everybody else waits for it: Postfix tries for 4 s.
DRAIN_SECONDS = 2.0

Respond = Callable[[Request], bytes | Coroutine[Any, Any, bytes]]

logger = logging.getLogger(__name__)


class Server:
    """Answers what comes in on a listening socket, until `stop()`."""

    def __init__(
        self,
        respond: Respond,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        sweep_seconds: float = SWEEP_SECONDS,
    ) -> None:
        self.respond = respond
        self._max_connections = max_connections
        self._idle_seconds = idle_seconds
        self._sweep_seconds = sweep_seconds
        self._connections: set[_Connection] = set()
        self._full_logged = -FULL_LOG_SECONDS

    async def start(self, listening: socket.socket) -> None:
        """Begin to accept connections."""
        loop = asyncio.get_running_loop()
        # A duplicate, which is closed when we stop: who connects after that waits on the original.
        self._accepting = await loop.create_unix_server(
            lambda: _Connection(self), sock=listening.dup(), backlog=BACKLOG
        )
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)

    async def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Accept no more, let the answers under way be finished, and close all connections."""
        self._accepting.close()
        self._sweeper.cancel()
        busy = {task for connection in self._connections if (task := connection.finish())}
        if busy:
            logger.info("finishing %d answers", len(busy))
            await asyncio.wait(busy, timeout=drain_seconds)
        for connection in list(self._connections):
            connection.close()

    def admit(self, connection: _Connection) -> bool:
        """Take a new connection in, unless there are enough."""
        if len(self._connections) < self._max_connections:
            self._connections.add(connection)
            return True
        now = asyncio.get_running_loop().time()
        if now - self._full_logged >= FULL_LOG_SECONDS:
            self._full_logged = now
            logger.error(
                "%d connections are open, no more are taken: is Postfix's smtpd process limit"
                " higher than that?",
                self._max_connections,
            )
        return False

    def dismiss(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.discard(connection)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._connections):
            connection.close_if_idle_since(monotonic() - self._idle_seconds)
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection. It works on one request at a time: Postfix waits for each reply anyway."""

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser()
        self._task: asyncio.Task[bytes] | None = None
        self._respond = server.respond
        self._can_write = True
        self._paused = False
        self._finishing = False
        self._last_read = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a stream server makes
        self._transport = transport
        if not self._server.admit(self):
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._server.dismiss(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._last_read = monotonic()
        self._parser.feed(data)
        if self._task is None and self._can_write:
            self._answer()
        else:
            # Who sends on without waiting, or without reading, is not listened to meanwhile.
            self._transport.pause_reading()
            self._paused = True

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._answer()

    def finish(self) -> asyncio.Task[bytes] | None:
        """Close now, or once the answer under way, which is returned, has been sent."""
        self._finishing = True
        if self._task is None:
            self._transport.close()
        return self._task

    def close(self) -> None:
        self._transport.close()

    def close_if_idle_since(self, moment: float) -> None:
        if self._task is None and self._last_read <= moment:
            # Not close(): that would wait for a peer that has stopped reading.
            self._transport.abort()

    def _answer(self) -> None:
        """Answer what has been read, as far as that is possible without waiting."""
        try:
            while (request := self._parser.take()) is not None:
                reply = self._respond(request)
                if not isinstance(reply, bytes):
                    self._task = self._loop.create_task(reply)
                    self._task.add_done_callback(self._answer_late)
                    return
                self._transport.write(reply)
                if not self._can_write:
                    return
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
        except ProtocolError as error:
            # No reply: Postfix tries again on a new connection, and in the end answers 451 itself.
            logger.warning("closing a connection: %s", error)
            self._transport.close()

    def _answer_late(self, task: asyncio.Task[bytes]) -> None:
        self._task = None
        if not task.cancelled():
            self._transport.write(task.result())
        if task.cancelled() or self._finishing:
            self._transport.close()
        else:
            self._answer()
