"""Recovers known-good domains from a damaged file, which SQLite cannot read or reads wrongly.

Each row has a checksum, so that a row is recognised wherever it is found, and a flipped bit in a
name does not make a domain known good that the platform never confirmed.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

from mx_validator.domain import MAX_DOMAIN_CHARACTERS, MalformedDomainError, normalise

# Every column of a damaged row may have every type.
Value = bytes | float | str | None
READ_BYTES = 4096  # one read: an unreadable sector of the disk costs no more than that

# A row in SQLite's record format (https://www.sqlite.org/fileformat.html, 2.1): the header's
# length, and the serial types of id (which is stored elsewhere), domain, confirmed and checksum.
# The domain's is 13 + 2 x length, in two bytes from 58 characters on. Matches may overlap.
_HEADER = re.compile(
    rb"(?=[\x05\x06]\x00([\x0f-\x7f]|[\x80-\xff][\x00-\x7f])([\x01-\x09])([\x01-\x06\x08\x09]))",
    re.DOTALL,
)
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
_FLOAT = 7
_ONE = 9  # the serial type of the number one, which has no bytes; 8 is zero


def checksum(domain: bytes, confirmed: float) -> int:
    """Return the checksum of a row."""
    return zlib.crc32(struct.pack("<d", confirmed), zlib.crc32(domain))


def valid_domain(domain: Value, confirmed: Value) -> str | None:
    """Return the domain of a row if it is in normal form and the time possible; otherwise None."""
    if not isinstance(domain, bytes) or not isinstance(confirmed, float):
        return None
    # This excludes infinity and NaN, too; time.gmtime() takes values below 2^40.
    if not 0 <= confirmed < 1 << 40:
        return None
    try:
        name = domain.decode("ascii")
        return name if normalise(name) == name else None
    except (UnicodeDecodeError, MalformedDomainError):
        return None


def salvage(*files: Path) -> list[tuple[str, float]]:
    """Return each domain in the files with the time of its last confirmation, the oldest first.

    Searches the bytes, independent of SQLite's structures. In a write-ahead log it may find a
    domain that was deleted since; its next mail leads to a new lookup.
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
    name = valid_domain(domain, confirmed)
    return None if name is None else (name, confirmed)


def _number(content: bytes, start: int, kind: int) -> tuple[float | None, int]:
    """Return a number, or None if it is cut off, and the offset of its end."""
    if kind == _FLOAT:
        value = content[start : start + 8]
        return (struct.unpack(">d", value)[0] if len(value) == 8 else None), start + 8
    end = start + _INTEGER_BYTES[kind]
    if start == end:
        return float(kind == _ONE), end
    return float(int.from_bytes(content[start:end], "big", signed=True)), end


def _read(file: Path) -> bytes:
    """Return a file's content, with zeros for what cannot be read; empty if it cannot be opened."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        return b"".join(_read_piece(descriptor, offset) for offset in range(0, size, READ_BYTES))
    finally:
        os.close(descriptor)


def _read_piece(descriptor: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, READ_BYTES, offset)
    except OSError:
        return bytes(READ_BYTES)
