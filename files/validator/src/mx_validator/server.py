"""Serves Postfix's connections: reads requests, and writes the replies in the same order."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from mx_validator.listener import BACKLOG
from mx_validator.protocol import ProtocolError, Request, RequestParser

# Each smtpd process holds one; Postfix's default is up to 100 processes.
MAX_CONNECTIONS = 1000
# Postfix closes after smtpd_policy_service_max_idle, 300 s, or max_ttl, 1,000 s. If this server
# closed first, a request could be in transit at that moment.
IDLE_SECONDS = 1200.0
SWEEP_SECONDS = 60.0  # between two searches for idle connections
FULL_LOG_SECONDS = 60.0  # at most one log line about refused connections in this time
# For pending replies when the daemon stops. A request without a reply is sent again to the next
# daemon, for which all others wait meanwhile: Postfix tries for 4 s.
DRAIN_SECONDS = 2.0

Respond = Callable[[Request], bytes | Coroutine[Any, Any, bytes]]

logger = logging.getLogger(__name__)


class PolicyServer:
    """Serves all connections of a listening socket, until `stop()`."""

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
        self._connections: set[_PolicyConnection] = set()
        self._full_logged = -FULL_LOG_SECONDS

    async def start(self, listening: socket.socket) -> None:
        """Start to accept connections."""
        loop = asyncio.get_running_loop()
        # A duplicate, which stop() closes: later connections wait in the backlog of the original.
        self._acceptor = await loop.create_unix_server(
            lambda: _PolicyConnection(self), sock=listening.dup(), backlog=BACKLOG
        )
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)

    async def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Stop accepting, wait for pending replies, and close all connections."""
        self._acceptor.close()
        self._sweeper.cancel()
        pending = {
            task for connection in self._connections if (task := connection.close_after_reply())
        }
        if pending:
            logger.info("finishing %d answers", len(pending))
            await asyncio.wait(pending, timeout=drain_seconds)
        for connection in list(self._connections):
            connection.close()

    def register(self, connection: _PolicyConnection) -> bool:
        """Add a connection; return False if there are too many."""
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

    def unregister(self, connection: _PolicyConnection) -> None:
        """Remove a connection that is closed."""
        self._connections.discard(connection)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._connections):
            connection.close_if_idle_since(monotonic() - self._idle_seconds)
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep)


class _PolicyConnection(asyncio.Protocol):
    """One connection. It handles one request at a time: Postfix waits for each reply anyway."""

    _transport: asyncio.Transport

    def __init__(self, server: PolicyServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser()
        self._task: asyncio.Task[bytes] | None = None
        self._respond = server.respond
        self._can_write = True
        self._reading_paused = False
        self._closing = False
        self._last_read = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a stream server makes
        self._transport = transport
        if not self._server.register(self):
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._server.unregister(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._last_read = monotonic()
        self._parser.feed(data)
        if self._task is None and self._can_write:
            self._process_requests()
        else:
            # The peer sends without waiting for replies, or does not read them: stop reading.
            self._transport.pause_reading()
            self._reading_paused = True

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._process_requests()

    def close_after_reply(self) -> asyncio.Task[bytes] | None:
        """Close now, or after the pending reply, whose task is returned."""
        self._closing = True
        if self._task is None:
            self._transport.close()
        return self._task

    def close(self) -> None:
        self._transport.close()

    def close_if_idle_since(self, time: float) -> None:
        if self._task is None and self._last_read <= time:
            # Not close(), which would wait for a peer that does not read.
            self._transport.abort()

    def _process_requests(self) -> None:
        """Reply to the requests that were read, until one of them needs a lookup."""
        try:
            while (request := self._parser.next_request()) is not None:
                reply = self._respond(request)
                if not isinstance(reply, bytes):
                    self._task = self._loop.create_task(reply)
                    self._task.add_done_callback(self._send_late_reply)
                    return
                self._transport.write(reply)
                if not self._can_write:
                    return
            if self._reading_paused:
                self._reading_paused = False
                self._transport.resume_reading()
        except ProtocolError as error:
            # No reply: Postfix tries again on a new connection, and finally applies default_action.
            logger.warning("closing a connection: %s", error)
            self._transport.close()

    def _send_late_reply(self, task: asyncio.Task[bytes]) -> None:
        self._task = None
        if not task.cancelled():
            self._transport.write(task.result())
        if task.cancelled() or self._closing:
            self._transport.close()
        else:
            self._process_requests()
