"""The SQLite file of known-good domains: its schema, and a reader that copes with damage."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mx_validator.salvage import checksum, salvage, valid_domain

BUSY_SECONDS = 5.0  # for another process to release its lock on the file
PAGE_BYTES = 4096  # a file with a table has at least three of them

# A new confirmation gives the domain a new id, so that the order of ids is the order of ages.
SCHEMA = """
CREATE TABLE IF NOT EXISTS known_good (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL UNIQUE,
    confirmed REAL NOT NULL,  -- seconds since 1970
    checksum INTEGER NOT NULL
)
"""
UPSERT = "INSERT OR REPLACE INTO known_good (domain, confirmed, checksum) VALUES (?, ?, ?)"
DELETE = "DELETE FROM known_good WHERE domain = ?"
_ALL = "SELECT * FROM known_good ORDER BY id"
_ANY = "SELECT 1 FROM known_good LIMIT 1"
_COUNT = "SELECT count(*) FROM known_good INDEXED BY sqlite_autoindex_known_good_1"
_NO_TABLE = "no such table: known_good"
_COLUMNS = ["id", "domain", "confirmed", "checksum"]
_COLUMNS_WITHOUT_CHECKSUM = _COLUMNS[:-1]  # as an earlier version wrote them
# Errors of SQLite that do not mean damage: the operator has to act, or another process to end.
_CANNOT_OPEN = "unable to open database file"
_READ_ONLY = "attempt to write a readonly database"
_NOT_DAMAGE = ("database is locked", "database or disk is full", _CANNOT_OPEN, _READ_ONLY)


class KnownGoodReader:
    """Reads each domain with the time of its confirmation in seconds since 1970, the oldest first.

    Damage raises nothing: all rows that can be read are read, and the attributes then tell what was
    found. Raises sqlite3.Error or OSError if the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: str | None = None  # the error
        self.lost: int | None = 0  # rows that cannot be read; None: the number is unknown
        self.outdated = False  # the rows have no checksums, as an earlier version wrote them
        self._good = 0

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Yield the rows; from a damaged file, a domain may come a second time."""
        try:
            with contextlib.closing(_open_snapshot(self._path)) as connection:
                yield from self._rows(connection)
        except sqlite3.Error as error:
            if not is_damage(error, self._path):
                raise
            if str(error) == _NO_TABLE and self._is_empty():
                return
            self.damage = str(error)
            found = salvage(self._path, sibling(self._path, "-wal"))
            expected = self._expected()
            if expected is None:
                self.lost = None
            else:
                self.lost = max(0, expected - max(self._good, len(found)))
            yield from found

    def _rows(self, connection: sqlite3.Connection) -> Iterator[tuple[str, float]]:
        rows = connection.execute(_ALL)
        columns = [column[0] for column in rows.description]
        self.outdated = columns == _COLUMNS_WITHOUT_CHECKSUM
        if not self.outdated and columns != _COLUMNS:
            raise sqlite3.DatabaseError("unknown columns")
        bad = 0
        for _, domain, confirmed, *recorded in rows:
            name = valid_domain(domain, confirmed)
            if name is None or not (self.outdated or recorded == [checksum(domain, confirmed)]):
                bad += 1
            else:
                self._good += 1
                yield name, confirmed
        if bad:
            raise sqlite3.DatabaseError("invalid rows")
        if _count(connection) != self._good:
            raise sqlite3.DatabaseError("the table and its index differ in their number of rows")

    def _expected(self) -> int | None:
        """Return the number of rows in the index; None if it cannot be read."""
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(connect(self._path, "mode=ro")) as connection,
        ):
            return _count(connection)
        return None

    def _is_empty(self) -> bool:
        """Whether the file and its write-ahead log are too small to have a row."""
        log = sibling(self._path, "-wal")
        return self._path.stat().st_size <= PAGE_BYTES and not (log.exists() and log.stat().st_size)


class _SqliteConnection(sqlite3.Connection):
    """Raises DatabaseError for damaged names of tables and columns, too.

    SQLite quotes such names in its messages, and Python's module fails to decode them as UTF-8.
    """

    def execute(self, *arguments: Any) -> sqlite3.Cursor:  # noqa: ANN401 - as in the base class
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError("names that are not UTF-8") from error


def connect(path: Path, uri_query: str = "mode=rwc") -> sqlite3.Connection:
    """Open a file, with the query of an SQLite URI. Text is returned as bytes."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{uri_query}",
        timeout=BUSY_SECONDS,
        isolation_level=None,
        uri=True,
        factory=_SqliteConnection,
    )
    connection.text_factory = bytes  # a damaged name need not be UTF-8
    return connection


def _open_snapshot(path: Path) -> sqlite3.Connection:
    """Open a read transaction: later writes do not change what it reads."""
    try:
        return _begin_snapshot(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # Without write permission, SQLite cannot recover a write-ahead log: read the file alone.
        if str(error) not in {_CANNOT_OPEN, _READ_ONLY}:
            raise
        return _begin_snapshot(path, "mode=ro&immutable=1")


def _begin_snapshot(path: Path, uri_query: str) -> sqlite3.Connection:
    connection = connect(path, uri_query)
    try:
        connection.execute("BEGIN")
        connection.execute(_ANY)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_COUNT).fetchone()[0])


def is_damage(error: Exception, path: Path) -> bool:
    """Whether an error means that the content of the file is wrong, or partly unreadable."""
    if not isinstance(error, sqlite3.Error):
        return False
    if str(error) == _READ_ONLY:
        # With write permission, the file's header is damaged: it demands a later version of SQLite.
        return os.access(path, os.W_OK)
    return str(error) not in _NOT_DAMAGE


def sibling(path: Path, suffix: str) -> Path:
    """Return the path of a file in the same directory, named after this one."""
    return path.with_name(path.name + suffix)


def make_row(domain: str, confirmed: float) -> tuple[str, float, int]:
    """Return the parameters of `UPSERT`."""
    return domain, confirmed, checksum(domain.encode(), confirmed)
