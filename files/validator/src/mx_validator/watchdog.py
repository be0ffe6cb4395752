"""Ends the process when its event loop is stuck, so that Supervisor starts it again."""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable

BEAT_SECONDS = 1.0
# Longer than anything the loop does, shorter than Postfix's patience: five tries of 10 s.
STUCK_SECONDS = 15.0


class Watchdog:
    """Beats once a second. When the beats cease: says on stderr where each thread stands, and ends.

    Who waits for them is a thread in C: it needs nothing of Python, which may be what is stuck.
    """

    def __init__(self, on_beat: Callable[[], None], stuck_seconds: float = STUCK_SECONDS) -> None:
        self._on_beat = on_beat
        self._stuck_seconds = stuck_seconds
        self._loop = asyncio.get_running_loop()
        self._expected = self._loop.time()
        self.lag_seconds = 0.0  # by which the last beat came late
        self._timer = self._loop.call_soon(self._beat)

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _beat(self) -> None:
        faulthandler.dump_traceback_later(self._stuck_seconds, exit=True)
        now = self._loop.time()
        self.lag_seconds = max(0.0, now - self._expected)
        self._expected = now + BEAT_SECONDS
        self._timer = self._loop.call_at(self._expected, self._beat)
        self._on_beat()
