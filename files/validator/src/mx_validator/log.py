"""The log: to stderr, which Supervisor keeps; one line for each event, whatever is in it."""

from __future__ import annotations

import logging
import time

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


def set_up(level: str) -> None:
    """Send our log to stderr from `level` up, that of libraries from WARNING up."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    set_level(level)


def set_level(level: str) -> None:
    """Change our level."""
    logging.getLogger("mx_validator").setLevel(level.upper())
