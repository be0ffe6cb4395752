"""Known-good domains on disk: an SQLite file that outlives the process.

No answer ever waits for it. A thread writes what has gathered since its last write; what cannot be
written is tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

RETRY_SECONDS = 30.0  # until a failed write is tried again
STOP_SECONDS = 5.0  # for the last write at the end of the process
BUSY_SECONDS = 5.0  # for another process to let go of the file
BATCH_DOMAINS = 1000  # in one transaction

# Who is confirmed anew moves to the end, so that reading by id is reading by age, without sorting.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS known_good (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL UNIQUE,
    confirmed REAL NOT NULL  -- seconds since 1970
)
"""
_KEEP = "INSERT OR REPLACE INTO known_good (domain, confirmed) VALUES (?, ?)"
_DROP = "DELETE FROM known_good WHERE domain = ?"
_ALL = "SELECT domain, confirmed FROM known_good ORDER BY id"
# Not writable at all, nothing can be recovered either: then the file alone, as it is, is better.
_WAYS_TO_READ = ("mode=ro", "mode=ro&immutable=1")

logger = logging.getLogger(__name__)


def read(path: Path) -> Iterator[tuple[str, float]]:
    """Yield each domain and when it was confirmed, in seconds since 1970, the longest ago first.

    Raises:
        sqlite3.Error: The file is missing, cannot be read, or is damaged from here on.
    """
    for way in _WAYS_TO_READ:
        uri = f"{path.absolute().as_uri()}?{way}"
        try:
            with contextlib.closing(_connect(uri)) as connection:
                yield from connection.execute(_ALL)
                return
        except sqlite3.OperationalError:
            if way == _WAYS_TO_READ[-1]:
                raise


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True)


class Store:
    """Keeps known-good domains in a file: `load()`, then `start()`, and `stop()` at the end."""

    def __init__(
        self,
        path: Path,
        retry_seconds: float = RETRY_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._retry_seconds = retry_seconds
        self._wall_clock = wall_clock
        self._connection: sqlite3.Connection | None = None
        # Its other end never holds up the one that puts something in.
        self._queue: queue.SimpleQueue[tuple[str, float | None] | None] = queue.SimpleQueue()
        # By domain when it was confirmed, or None if it is to be dropped.
        self._unwritten: dict[str, float | None] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.trouble: str | None = None
        self.trouble_since: float | None = None  # seconds since 1970
        self.starts_empty = False  # a damaged file was replaced: all domains have to be kept anew

    def load(self) -> Iterator[tuple[str, float]]:
        """Yield each domain with its age in seconds, the oldest first; nothing raises.

        What can still be read of a damaged file is yielded; then the file is put aside.
        """
        if not self._path.exists():
            return
        now = self._wall_clock()
        count = 0
        try:
            for domain, confirmed in read(self._path):
                count += 1
                # A clock that was put back must not make anything younger than new.
                yield domain, max(0.0, now - confirmed)
        except sqlite3.DatabaseError as error:
            self._fail(f"could be read for {count} domains only", error)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, and end."""
        self._queue.put(None)
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def keep(self, domain: str, age_seconds: float = 0.0) -> None:
        """Keep a domain that was confirmed just now, or some time ago."""
        self._queue.put((domain, self._wall_clock() - age_seconds))

    def drop(self, domain: str) -> None:
        """Keep a domain no longer."""
        self._queue.put((domain, None))

    @property
    def unwritten(self) -> int:
        """How many domains wait to be written."""
        return len(self._unwritten) + self._queue.qsize()

    # -- the thread's side ----------------------------------------------------

    def _run(self) -> None:
        stop = False
        while not stop:
            stop = self._gather()
            while self._unwritten and self._write():
                pass
            if self._unwritten and not stop:
                self._stopping.wait(self._retry_seconds)
        if self._connection is not None:
            self._connection.close()

    def _gather(self) -> bool:
        """Take what there is; wait for it if nothing is left to write. Return whether to stop."""
        wait = not self._unwritten
        while wait or not self._queue.empty():
            item = self._queue.get()
            if item is None:
                return True
            domain, confirmed = item
            # Put last, also in place of an older one: its id is to be higher.
            self._unwritten.pop(domain, None)
            self._unwritten[domain] = confirmed
            wait = False
        return False

    def _write(self) -> bool:
        """Write a batch. Return whether it is on disk."""
        batch = list(itertools.islice(self._unwritten.items(), BATCH_DOMAINS))
        try:
            connection = self._connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for domain, confirmed in batch:
                    if confirmed is None:
                        connection.execute(_DROP, (domain,))
                    else:
                        connection.execute(_KEEP, (domain, confirmed))
                connection.execute("COMMIT")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            self._fail("cannot be written", error)
            return False
        for domain, _ in batch:
            del self._unwritten[domain]
        if self.trouble is not None:
            logger.info("%s: is written again", self._path)
            self.trouble = self.trouble_since = None
        return True

    def _open(self) -> sqlite3.Connection:
        connection = _connect(self._path.absolute().as_uri())
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # committed is on disk
            connection.execute(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    # -- both -----------------------------------------------------------------

    def _fail(self, what: str, error: Exception) -> None:
        """Log a trouble once; put the file aside if it is damaged."""
        if str(error) != self.trouble:
            logger.error(
                "%s: known-good domains on disk %s (%s); what is in memory goes on to count",
                self._path,
                what,
                error,
            )
            self.trouble_since = self.trouble_since or self._wall_clock()
        self.trouble = str(error)
        # SQLite's own troubles (full, read-only, locked) are OperationalErrors: the file is good.
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, sqlite3.OperationalError
        ):
            self._put_aside()

    def _put_aside(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = self._path.with_name(f"{self._path.name}.damaged")
        try:
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            logger.error("%s: cannot be put aside (%s)", self._path, error)  # noqa: TRY400 - no traceback needed
            return
        logger.error("%s: put aside; a new file is begun", aside)
        self.starts_empty = True
