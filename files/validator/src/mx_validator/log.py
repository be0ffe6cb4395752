"""The log goes to stderr, which Supervisor writes to a file; each record is exactly one line.

A thread writes it. When Supervisor does not read, the pipe fills up and a write blocks: it must not
block the event loop, for which Postfix waits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time

MAX_QUEUED_LINES = 10_000  # further lines are dropped, and counted
FLUSH_SECONDS = 2.0  # for the last lines before the process ends

# Control characters, line separators and lone surrogates: with them, a domain name or an error text
# from outside could forge a line, or make the encoding of one fail.
_ESCAPES = {
    code: ascii(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))
}


class OneLineFormatter(logging.Formatter):
    r"""`2026-01-31T12:00:00Z INFO text`; the line ends of a traceback are written as `\n`."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record on one line."""
        return super().format(record).translate(_ESCAPES)


class BackgroundHandler(logging.Handler):
    """Passes records to another handler in a thread; drops them when its queue is full."""

    def __init__(self, handler: logging.Handler, max_queued: int = MAX_QUEUED_LINES) -> None:
        super().__init__()
        self._handler = handler
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(max_queued)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it."""
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def stop(self) -> None:
        """Write the queued records, for at most `FLUSH_SECONDS`."""
        deadline = time.monotonic() + FLUSH_SECONDS
        try:
            self._lines.put(None, timeout=FLUSH_SECONDS)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (record := self._lines.get()) is not None:
            self._handler.handle(record)
            if self._dropped and self._lines.empty():
                dropped, self._dropped = self._dropped, 0
                text = f"{dropped} log lines were dropped because the pipe to Supervisor was full"
                self._handler.handle(logging.makeLogRecord({"msg": text, "levelname": "WARNING"}))


def set_up(level: str) -> BackgroundHandler:
    """Log to stderr from `level` up, and from WARNING up for libraries.

    Call `stop()` of the returned handler before the process ends.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    writer = BackgroundHandler(handler)
    logging.basicConfig(level=logging.WARNING, handlers=[writer], force=True)
    set_level(level)
    return writer


def set_level(level: str) -> None:
    """Change the level, but not that of libraries."""
    logging.getLogger("mx_validator").setLevel(level.upper())
