"""Known-good domains out of a damaged file: what SQLite does not get at, or would not notice.

Each row has a checksum, so that it can be believed wherever it is found, and a flipped bit in a
name does not let in a domain that nobody confirmed.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

from mx_validator.domain import MAX_DOMAIN_CHARACTERS, MalformedDomainError, normalise

# Any column but text comes out of a damaged row as anything else, too.
Value = bytes | float | str | None
READ_BYTES = 4096  # at a time: what a disk cannot give is not more than that

# A row in SQLite's record format (https://www.sqlite.org/fileformat.html, 2.1): the header's
# length, and the serial types of id (which is elsewhere), domain, confirmed and checksum. The
# domain's is 13 + 2 x length, in two bytes from 58 characters on. Matches may overlap.
_HEADER = re.compile(
    rb"(?=[\x05\x06]\x00([\x0f-\x7f]|[\x80-\xff][\x00-\x7f])([\x01-\x09])([\x01-\x06\x08\x09]))",
    re.DOTALL,
)
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
_FLOAT = 7
_ONE = 9  # the number itself, without a byte; 8 is zero


def checksum(domain: bytes, confirmed: float) -> int:
    """Return what a row has beside these two."""
    return zlib.crc32(struct.pack("<d", confirmed), zlib.crc32(domain))


def checked(domain: Value, confirmed: Value) -> str | None:
    """Return the domain of a row if it is one in normal form, confirmed at a possible time."""
    if not isinstance(domain, bytes) or not isinstance(confirmed, float):
        return None
    # Neither infinite nor NaN, which no comparison holds for; time.gmtime() takes less than 2^40.
    if not 0 <= confirmed < 1 << 40:
        return None
    try:
        name = domain.decode("ascii")
        return name if normalise(name) == name else None
    except (UnicodeDecodeError, MalformedDomainError):
        return None


def salvage(*files: Path) -> list[tuple[str, float]]:
    """Return each domain in the files with when it was last confirmed, the longest ago first.

    Looks at the bytes, wherever they are. May find a domain that was dropped, in what was not yet
    copied from the write-ahead log: the platform is asked about it at its next mail.
    """
    found: dict[str, float] = {}
    for file in files:
        content = _read(file)
        for match in _HEADER.finditer(content):
            row = _row(content, match)
            if row is not None and row[1] >= found.get(row[0], 0.0):
                found[row[0]] = row[1]
    return sorted(found.items(), key=lambda row: row[1])


def _row(content: bytes, match: re.Match[bytes]) -> tuple[str, float] | None:
    text, time, total = (content[slice(*match.span(group))] for group in (1, 2, 3))
    kind = text[0] if len(text) == 1 else (text[0] & 0x7F) << 7 | text[1]
    length, is_blob = divmod(kind - 12, 2)
    if content[match.start()] != 4 + len(text) or not is_blob or length > MAX_DOMAIN_CHARACTERS:
        return None
    start = match.end(3)
    domain = content[start : start + length]
    confirmed, start = _number(content, start + length, time[0])
    recorded, _ = _number(content, start, total[0])
    if confirmed is None or recorded != checksum(domain, confirmed):
        return None
    name = checked(domain, confirmed)
    return None if name is None else (name, confirmed)


def _number(content: bytes, start: int, kind: int) -> tuple[float | None, int]:
    """Return a number, None if it is cut off, and where it ends."""
    if kind == _FLOAT:
        value = content[start : start + 8]
        return (struct.unpack(">d", value)[0] if len(value) == 8 else None), start + 8
    end = start + _INTEGER_BYTES[kind]
    if start == end:
        return float(kind == _ONE), end
    return float(int.from_bytes(content[start:end], "big", signed=True)), end


def _read(file: Path) -> bytes:
    """Return a file's content, with zeros for what cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        return b"".join(_piece(descriptor, place) for place in range(0, size, READ_BYTES))
    finally:
        os.close(descriptor)


def _piece(descriptor: int, place: int) -> bytes:
    try:
        return os.pread(descriptor, READ_BYTES, place)
    except OSError:
        return bytes(READ_BYTES)
