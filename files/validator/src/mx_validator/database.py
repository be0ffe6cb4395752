"""The SQLite file of known-good domains: its form, and how it is read although it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mx_validator.salvage import checked, checksum, salvage

BUSY_SECONDS = 5.0  # for another process to let go of the file
PAGE_BYTES = 4096  # a file with a table has at least three of them

# Who is confirmed anew moves to the end, so that reading by id is reading by age, without sorting.
SCHEMA = """
CREATE TABLE IF NOT EXISTS known_good (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL UNIQUE,
    confirmed REAL NOT NULL,  -- seconds since 1970
    checksum INTEGER NOT NULL
)
"""
KEEP = "INSERT OR REPLACE INTO known_good (domain, confirmed, checksum) VALUES (?, ?, ?)"
DROP = "DELETE FROM known_good WHERE domain = ?"
_ALL = "SELECT * FROM known_good ORDER BY id"
_ANY = "SELECT 1 FROM known_good LIMIT 1"
_COUNT = "SELECT count(*) FROM known_good INDEXED BY sqlite_autoindex_known_good_1"
_NO_TABLE = "no such table: known_good"
_COLUMNS = ["id", "domain", "confirmed", "checksum"]
_COLUMNS_BEFORE = _COLUMNS[:-1]  # of a file that an earlier version wrote
# What SQLite says when the file is good, and somebody has to do something about it.
_CANNOT_OPEN = "unable to open database file"
_READ_ONLY = "attempt to write a readonly database"
_NOT_DAMAGE = ("database is locked", "database or disk is full", _CANNOT_OPEN, _READ_ONLY)


class Reader:
    """Reads each domain and when it was confirmed, in seconds since 1970, the longest ago first.

    What it found is to be seen afterwards. Raises sqlite3.Error or OSError if the file cannot be
    opened, but not for damage: then all is read that can be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: str | None = None  # what it is
        self.lost: int | None = 0  # rows that cannot be read; None: not known how many
        self.outdated = False  # the rows have no checksums yet
        self._good = 0

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Yield them, and a domain a second time if that is the way to get all."""
        try:
            with contextlib.closing(_begin(self._path)) as connection:
                yield from self._rows(connection)
        except sqlite3.Error as error:
            if not is_damage(error, self._path):
                raise
            if str(error) == _NO_TABLE and self._is_empty():
                return
            self.damage = str(error)
            found = salvage(self._path, beside(self._path, "-wal"))
            expected = self._expected()
            if expected is None:
                self.lost = None
            else:
                self.lost = max(0, expected - max(self._good, len(found)))
            yield from found

    def _rows(self, connection: sqlite3.Connection) -> Iterator[tuple[str, float]]:
        rows = connection.execute(_ALL)
        columns = [column[0] for column in rows.description]
        self.outdated = columns == _COLUMNS_BEFORE
        if not self.outdated and columns != _COLUMNS:
            raise sqlite3.DatabaseError("columns that nobody made")
        bad = 0
        for _, domain, confirmed, *recorded in rows:
            name = checked(domain, confirmed)
            if name is None or not (self.outdated or recorded == [checksum(domain, confirmed)]):
                bad += 1
            else:
                self._good += 1
                yield name, confirmed
        if bad:
            raise sqlite3.DatabaseError("rows that nobody wrote")
        if _count(connection) != self._good:
            raise sqlite3.DatabaseError("more or fewer rows than the index has")

    def _expected(self) -> int | None:
        """Return how many rows there should be, if the index can be read that says so."""
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(connect(self._path, "mode=ro")) as connection,
        ):
            return _count(connection)
        return None

    def _is_empty(self) -> bool:
        """Whether nothing can have been written yet."""
        log = beside(self._path, "-wal")
        return self._path.stat().st_size <= PAGE_BYTES and not (log.exists() and log.stat().st_size)


class _Connection(sqlite3.Connection):
    """Says of damage in names of tables and columns, too, that it is an error of the database.

    SQLite quotes such names in its messages; Python's module takes them for UTF-8, and fails.
    """

    def execute(self, *arguments: Any) -> sqlite3.Cursor:  # noqa: ANN401 - as in the base class
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError("names that nobody gave") from error


def connect(path: Path, way: str = "mode=rwc") -> sqlite3.Connection:
    """Open a file, the way as in a URI of SQLite. Text comes as bytes."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{way}",
        timeout=BUSY_SECONDS,
        isolation_level=None,
        uri=True,
        factory=_Connection,
    )
    connection.text_factory = bytes  # a damaged name need not be UTF-8
    return connection


def _begin(path: Path) -> sqlite3.Connection:
    """Begin to read: from here on no writer changes what is seen."""
    try:
        return _try_to_begin(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # Not writable at all, nothing can be recovered either: then the file alone is better.
        if str(error) not in {_CANNOT_OPEN, _READ_ONLY}:
            raise
        return _try_to_begin(path, "mode=ro&immutable=1")


def _try_to_begin(path: Path, way: str) -> sqlite3.Connection:
    connection = connect(path, way)
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
    """Whether an error says that the file is not what was written, or cannot be read in part."""
    if not isinstance(error, sqlite3.Error):
        return False
    if str(error) == _READ_ONLY:
        # Not for us: the file's header says that it is for a later version of SQLite.
        return os.access(path, os.W_OK)
    return str(error) not in _NOT_DAMAGE


def beside(path: Path, suffix: str) -> Path:
    """Return the path of a file beside another, which bears its name."""
    return path.with_name(path.name + suffix)


def row(domain: str, confirmed: float) -> tuple[str, float, int]:
    """Return what `KEEP` takes."""
    return domain, confirmed, checksum(domain.encode(), confirmed)
