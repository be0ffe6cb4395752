"""Known-good domains on disk: an SQLite file that outlives the process.

No answer ever waits for it. A thread writes what has gathered since its last write; what cannot be
written is tried again. A damaged file is read as far as possible and written anew from memory.
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

from mx_validator.database import DROP, KEEP, SCHEMA, Reader, beside, connect, is_damage, row

RETRY_SECONDS = 30.0  # until a failed write is tried again
STOP_SECONDS = 5.0  # for the last write at the end of the process
BATCH_DOMAINS = 1000  # in one transaction

logger = logging.getLogger(__name__)


class Store:
    """Keeps known-good domains in a file: `load()`, then `start()`, and `stop()` at the end."""

    def __init__(
        self,
        path: Path,
        retry_seconds: float = RETRY_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._new = beside(path, ".new")
        self._aside = beside(path, ".damaged")
        self._retry_seconds = retry_seconds
        self._wall_clock = wall_clock
        self._connection: sqlite3.Connection | None = None
        # Its other end never holds up the one that puts something in.
        self._queue: queue.SimpleQueue[
            tuple[str, float | None] | list[tuple[str, float]] | None
        ] = queue.SimpleQueue()
        # By domain when it was confirmed, or None if it is to be dropped.
        self._unwritten: dict[str, float | None] = {}
        self._all: list[tuple[str, float]] | None = None  # for the new file
        self._waits_for_all = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self.trouble: str | None = None
        self.trouble_since: float | None = None  # seconds since 1970
        self.wants_all = False  # the file has to be written anew: `keep_all` is to be called
        self.damaged = False  # it was, since the start
        self.lost: int | None = 0  # its rows that could not be read; None: not known how many

    def load(self) -> Iterator[tuple[str, float]]:
        """Yield each domain with its age in seconds, the oldest first; nothing raises."""
        reader = Reader(self._path)
        try:
            self._recover_exchange()
            if not self._path.exists():
                return
            now = self._wall_clock()
            for domain, confirmed in reader:
                # A clock that was put back must not make anything younger than new.
                yield domain, max(0.0, now - confirmed)
        except (sqlite3.Error, OSError) as error:
            self._fail("cannot be read", error)
        if reader.damage is not None:
            self.lost = reader.lost
            self._begin_anew(reader.damage)
        elif reader.outdated:
            self.wants_all = self._waits_for_all = True

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
        # Not before 1970, which no row can say: a clock may begin there at the start of the host.
        self._queue.put((domain, max(0.0, self._wall_clock() - age_seconds)))

    def keep_all(self, ages: Iterable[tuple[str, float]]) -> None:
        """Keep these domains, with their ages in seconds and the oldest first, and no others."""
        now = self._wall_clock()
        self.wants_all = False
        self._queue.put([(domain, max(0.0, now - age)) for domain, age in ages])

    def drop(self, domain: str) -> None:
        """Keep a domain no longer."""
        self._queue.put((domain, None))

    @property
    def unwritten(self) -> int:
        """How many domains wait to be written."""
        return len(self._unwritten) + len(self._all or ()) + self._queue.qsize()

    # -- the thread's side ----------------------------------------------------

    def _run(self) -> None:
        self._verify()
        stop = False
        while not stop:
            stop = self._gather()
            if self._all is not None:
                self._write_anew(self._all)
            while self._unwritten and self._is_good() and self._write():
                pass
            if self._is_behind() and not stop:
                self._stopping.wait(self._retry_seconds)
        if self._connection is not None:
            self._connection.close()

    def _is_good(self) -> bool:
        """Whether the file is one to write to."""
        return self._all is None and not self._waits_for_all

    def _is_behind(self) -> bool:
        """Whether there is something to write that is not still to come."""
        return not self._waits_for_all and (bool(self._unwritten) or self._all is not None)

    def _verify(self) -> None:
        """Look for damage that reading did not meet: in the index, which writing relies on."""
        if self._waits_for_all or not self._path.is_file():
            return
        try:
            with contextlib.closing(connect(self._path, "mode=ro")) as connection:
                (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.Error as error:
            if is_damage(error, self._path):
                self._begin_anew(str(error))
            return
        if found != b"ok":
            self._begin_anew(found.decode("utf-8", "replace"))

    def _gather(self) -> bool:
        """Take what there is; wait for it if nothing is left to write. Return whether to stop."""
        wait = not self._is_behind()
        while wait or not self._queue.empty():
            item = self._queue.get()
            if item is None:
                return True
            if isinstance(item, list):
                self._all = item
                self._unwritten.clear()  # which is part of it
                self._waits_for_all = False
            else:
                domain, confirmed = item
                # Put last, also in place of an older one: its id is to be higher.
                self._unwritten.pop(domain, None)
                self._unwritten[domain] = confirmed
            wait = self._waits_for_all
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
                        connection.execute(DROP, (domain,))
                    else:
                        connection.execute(KEEP, row(domain, confirmed))
                connection.execute("COMMIT")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            if is_damage(error, self._path):
                self._begin_anew(str(error))
            else:
                self._fail("cannot be written", error)
            return False
        for domain, _ in batch:
            del self._unwritten[domain]
        self._succeed()
        return True

    def _open(self) -> sqlite3.Connection:
        connection = connect(self._path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # committed is on disk
            # What was dropped is not to be found by who looks at the bytes of a damaged file.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _write_anew(self, rows: list[tuple[str, float]]) -> None:
        """Write a new file beside the old one, and put it in its place once it is on disk."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        try:
            for suffix in ("", "-journal"):
                beside(self._new, suffix).unlink(missing_ok=True)
            with contextlib.closing(connect(self._new)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN")
                connection.execute(SCHEMA)
                connection.executemany(KEEP, itertools.starmap(row, rows))
                connection.execute("COMMIT")
            with contextlib.suppress(FileNotFoundError):
                self._path.replace(self._aside)
            self._recover_exchange()
            if not self.damaged:
                self._aside.unlink(missing_ok=True)
        except (sqlite3.Error, OSError) as error:
            self._fail("cannot be written anew", error)
            return
        self._all = None
        self._succeed()

    def _recover_exchange(self) -> None:
        """Put a new file in place of one that was put aside, also if the process ended between."""
        if self._new.exists() and not self._path.exists():
            for suffix in ("-wal", "-shm"):  # of the one that was put aside
                beside(self._path, suffix).unlink(missing_ok=True)
            self._new.replace(self._path)

    # -- both -----------------------------------------------------------------

    def _begin_anew(self, damage: str) -> None:
        """Ask for all that is in memory, for a new file."""
        lost = "an unknown number" if self.lost is None else self.lost
        logger.error(
            "%s: known-good domains on disk are damaged (%s), %s cannot be read; what is in memory"
            " goes on to count and is written anew, the damaged file becomes %s",
            self._path,
            damage,
            lost,
            self._aside,
        )
        self.damaged = True
        self.trouble = f"damaged ({damage})"
        self.trouble_since = self.trouble_since or self._wall_clock()
        self.wants_all = self._waits_for_all = True

    def _fail(self, what: str, error: Exception) -> None:
        """Log a trouble once."""
        if str(error) != self.trouble:
            logger.error(
                "%s: known-good domains on disk %s (%s); what is in memory goes on to count",
                self._path,
                what,
                error,
            )
            self.trouble_since = self.trouble_since or self._wall_clock()
        self.trouble = str(error)

    def _succeed(self) -> None:
        if self.trouble is not None:
            logger.info("%s: is written again", self._path)
            self.trouble = self.trouble_since = None
