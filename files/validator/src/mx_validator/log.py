"""The log: to stderr, which Supervisor keeps; one line for each event, whatever is in it.

A thread writes it. When Supervisor does not read, the pipe to it fills up, and whoever writes then
stands still: that must not be the event loop, which Postfix waits for.
"""

from __future__ import annotations

import logging
import queue
import threading
import time

LINES_WAITING = 10_000  # the rest is dropped, and counted
FLUSH_SECONDS = 2.0  # for the last lines at the end of the process

# Control characters, line separators and lone surrogates: what a domain name or an error text from
# outside could forge a line with, or break the writing of one.
_ESCAPES = {
    code: ascii(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0xD800, 0xE000))
}


class OneLineFormatter(logging.Formatter):
    r"""`2026-01-31T12:00:00Z INFO text`; a traceback has `\n` where its lines end."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record on one line."""
        return super().format(record).translate(_ESCAPES)


class Writer(logging.Handler):
    """Hands records to a handler in a thread of its own, as long as not too many wait."""

    def __init__(self, handler: logging.Handler, lines_waiting: int = LINES_WAITING) -> None:
        super().__init__()
        self._handler = handler
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(lines_waiting)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, or drop it."""
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def stop(self) -> None:
        """Write what waits, if that is possible soon."""
        ends = time.monotonic() + FLUSH_SECONDS
        try:
            self._lines.put(None, timeout=FLUSH_SECONDS)
        except queue.Full:
            return
        self._thread.join(max(0.0, ends - time.monotonic()))

    def _run(self) -> None:
        while (record := self._lines.get()) is not None:
            self._handler.handle(record)
            if self._dropped and self._lines.empty():
                dropped, self._dropped = self._dropped, 0
                text = f"{dropped} lines of the log were dropped: nobody read them"
                self._handler.handle(logging.makeLogRecord({"msg": text, "levelname": "WARNING"}))


def set_up(level: str) -> Writer:
    """Send our log to stderr from `level` up, that of libraries from WARNING up.

    The writer that is returned is to be stopped before the process ends.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    writer = Writer(handler)
    logging.basicConfig(level=logging.WARNING, handlers=[writer], force=True)
    set_level(level)
    return writer


def set_level(level: str) -> None:
    """Change our level."""
    logging.getLogger("mx_validator").setLevel(level.upper())
