"""Ends the process when its event loop is blocked, so that Supervisor restarts it."""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable

HEARTBEAT_SECONDS = 1.0
# Longer than any step of the loop, and shorter than Postfix waits: five tries of 10 s.
STUCK_SECONDS = 15.0


class Watchdog:
    """A heartbeat once a second. Without one, tracebacks go to stderr and the process ends.

    A thread in C waits for the heartbeats: it does not need the interpreter, which may be blocked.
    """

    def __init__(
        self, on_heartbeat: Callable[[], None], stuck_seconds: float = STUCK_SECONDS
    ) -> None:
        self._on_heartbeat = on_heartbeat
        self._stuck_seconds = stuck_seconds
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self.lag_seconds = 0.0  # delay of the last heartbeat
        self._timer = self._loop.call_soon(self._heartbeat)

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _heartbeat(self) -> None:
        faulthandler.dump_traceback_later(self._stuck_seconds, exit=True)
        now = self._loop.time()
        self.lag_seconds = max(0.0, now - self._due)
        self._due = now + HEARTBEAT_SECONDS
        self._timer = self._loop.call_at(self._due, self._heartbeat)
        self._on_heartbeat()
