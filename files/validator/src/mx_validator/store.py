"""Known-good domains on disk: an SQLite file that outlives the process.

No answer ever waits for the disk. A thread writes the changes since its last write, and retries
what could not be written. A damaged file is read as far as possible and then replaced by a new one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mx_validator.database import (
    DELETE,
    SCHEMA,
    UPSERT,
    KnownGoodReader,
    connect,
    is_damage,
    make_row,
    sibling,
)

RETRY_SECONDS = 30.0  # until a failed write is retried
STOP_SECONDS = 5.0  # for the last write before the process ends
BATCH_DOMAINS = 1000  # in one transaction

logger = logging.getLogger(__name__)


class SqliteStore:
    """Stores domains in a file. Call `load()`, then `start()`, and `stop()` at the end."""

    def __init__(
        self,
        path: Path,
        retry_seconds: float = RETRY_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._new_file = sibling(path, ".new")
        self._damaged_file = sibling(path, ".damaged")
        self._retry_seconds = retry_seconds
        self._wall_clock = wall_clock
        self._connection: sqlite3.Connection | None = None
        # A change to one domain, all domains of a new file, or None at the end. put() never blocks.
        self._queue: queue.SimpleQueue[
            tuple[str, float | None] | list[tuple[str, float]] | None
        ] = queue.SimpleQueue()
        # By domain the time of its confirmation, or None if it is to be deleted.
        self._unwritten: dict[str, float | None] = {}
        self._replacement: list[tuple[str, float]] | None = None  # the rows of a new file
        self._awaits_replacement = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.last_error: str | None = None  # None: the last write succeeded
        self.failing_since: float | None = None  # seconds since 1970
        self.needs_rewrite = False  # `replace_all` is to be called
        self.damaged = False  # the file was found damaged since the start
        self.lost: int | None = 0  # rows of it that could not be read; None: the number is unknown

    def load(self) -> Iterator[tuple[str, float]]:
        """Yield each domain with its age in seconds, the oldest first. Raises nothing."""
        reader = KnownGoodReader(self._path)
        try:
            self._finish_replacement()
            if not self._path.exists():
                return
            now = self._wall_clock()
            for domain, confirmed in reader:
                # The wall clock may have been set back: no age is negative.
                yield domain, max(0.0, now - confirmed)
        except (sqlite3.Error, OSError) as error:
            self._record_failure("cannot be read", error)
        if reader.damage is not None:
            self.lost = reader.lost
            self._record_damage(reader.damage)
        elif reader.outdated:
            self.needs_rewrite = self._awaits_replacement = True

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is not yet written, and end the thread."""
        self._queue.put(None)
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def save(self, domain: str, age_seconds: float = 0.0) -> None:
        """Store a domain that was confirmed `age_seconds` ago."""
        # Not before 1970, which no row may have: a host's clock may begin there at boot.
        self._queue.put((domain, max(0.0, self._wall_clock() - age_seconds)))

    def replace_all(self, ages: Iterable[tuple[str, float]]) -> None:
        """Store exactly these domains, with their ages in seconds, the oldest first."""
        now = self._wall_clock()
        self.needs_rewrite = False
        self._queue.put([(domain, max(0.0, now - age)) for domain, age in ages])

    def delete(self, domain: str) -> None:
        """Remove a domain."""
        self._queue.put((domain, None))

    @property
    def unwritten(self) -> int:
        """How many domains are not yet written."""
        return len(self._unwritten) + len(self._replacement or ()) + self._queue.qsize()

    # -- in the thread --------------------------------------------------------

    def _run(self) -> None:
        self._check_integrity()
        stop = False
        while not stop:
            stop = self._drain_queue()
            if self._replacement is not None:
                self._write_replacement(self._replacement)
            while self._unwritten and self._may_write_changes() and self._write_batch():
                pass
            if self._has_work() and not stop:
                self._stopping.wait(self._retry_seconds)
        if self._connection is not None:
            self._connection.close()

    def _may_write_changes(self) -> bool:
        """Whether the file on disk is usable, and not about to be replaced."""
        return self._replacement is None and not self._awaits_replacement

    def _has_work(self) -> bool:
        """Whether something could be written without waiting for the queue."""
        return not self._awaits_replacement and (
            bool(self._unwritten) or self._replacement is not None
        )

    def _check_integrity(self) -> None:
        """Look for damage that `load` does not meet, in the index, on which writes rely."""
        if self._awaits_replacement:
            return
        try:
            if not self._path.is_file():
                return
            with contextlib.closing(connect(self._path, "mode=ro")) as connection:
                (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except (sqlite3.Error, OSError) as error:
            if is_damage(error, self._path):
                self._record_damage(str(error))
            return  # a file that cannot be read is reported by the first write
        if found != b"ok":
            self._record_damage(found.decode("utf-8", "replace"))

    def _drain_queue(self) -> bool:
        """Take all items, waiting for one if there is no work. Return whether to stop."""
        wait = not self._has_work()
        while wait or not self._queue.empty():
            item = self._queue.get()
            if item is None:
                return True
            if isinstance(item, list):
                self._replacement = item
                self._unwritten.clear()  # the replacement has these changes
                self._awaits_replacement = False
            else:
                domain, confirmed = item
                # At the end, also instead of an earlier change: ids follow the confirmations.
                self._unwritten.pop(domain, None)
                self._unwritten[domain] = confirmed
            wait = self._awaits_replacement
        return False

    def _write_batch(self) -> bool:
        """Write a batch of changes. Return whether it is on disk."""
        batch = list(itertools.islice(self._unwritten.items(), BATCH_DOMAINS))
        try:
            connection = self._connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for domain, confirmed in batch:
                    if confirmed is None:
                        connection.execute(DELETE, (domain,))
                    else:
                        connection.execute(UPSERT, make_row(domain, confirmed))
                connection.execute("COMMIT")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            if is_damage(error, self._path):
                self._record_damage(str(error))
            else:
                self._record_failure("cannot be written", error)
            return False
        for domain, _ in batch:
            del self._unwritten[domain]
        self._record_success()
        return True

    def _open(self) -> sqlite3.Connection:
        connection = connect(self._path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # committed is on disk
            # Deleted rows are overwritten, so that salvage() does not find them.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _write_replacement(self, rows: list[tuple[str, float]]) -> None:
        """Write a new file beside the old one, and rename it once it is on disk."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            for suffix in ("", "-journal"):
                sibling(self._new_file, suffix).unlink(missing_ok=True)
            with contextlib.closing(connect(self._new_file)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN")
                connection.execute(SCHEMA)
                connection.executemany(UPSERT, itertools.starmap(make_row, rows))
                connection.execute("COMMIT")
            with contextlib.suppress(FileNotFoundError):
                self._path.replace(self._damaged_file)
            self._finish_replacement()
            if not self.damaged:
                self._damaged_file.unlink(missing_ok=True)
        except (sqlite3.Error, OSError) as error:
            self._record_failure("cannot be written anew", error)
            return
        self._replacement = None
        self._record_success()

    def _finish_replacement(self) -> None:
        """Rename a new file if the old one has been renamed, also in a process that ended then."""
        if self._new_file.exists() and not self._path.exists():
            for suffix in ("-wal", "-shm"):  # of the old file
                sibling(self._path, suffix).unlink(missing_ok=True)
            self._new_file.replace(self._path)

    # -- in any thread --------------------------------------------------------

    def _record_damage(self, damage: str) -> None:
        """Log damage, and request all cached domains for a new file."""
        lost = "an unknown number" if self.lost is None else self.lost
        logger.error(
            "%s: known-good domains on disk are damaged (%s), %s cannot be read; the domains in"
            " memory stay known good and are written to a new file, the damaged file becomes %s",
            self._path,
            damage,
            lost,
            self._damaged_file,
        )
        self.damaged = True
        self.last_error = f"damaged ({damage})"
        self.failing_since = self.failing_since or self._wall_clock()
        self.needs_rewrite = self._awaits_replacement = True

    def _record_failure(self, what: str, error: Exception) -> None:
        """Record an error, and log it unless it is the same as the last one."""
        if str(error) != self.last_error:
            logger.error(
                "%s: known-good domains on disk %s (%s); the domains in memory stay known good",
                self._path,
                what,
                error,
            )
            self.failing_since = self.failing_since or self._wall_clock()
        self.last_error = str(error)

    def _record_success(self) -> None:
        if self.last_error is not None:
            logger.info("%s: is written again", self._path)
            self.last_error = self.failing_since = None
