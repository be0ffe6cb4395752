"""The platform, which fetches and deletes in batches, over several connections, again and again."""

from __future__ import annotations

import contextlib
import imaplib
import threading
from typing import Any, Self

from ledger import Ledger
from probes import Message, Mx

COLLECTORS = 3
BATCH = 100
TIMEOUT_SECONDS = 20
PAUSE_SECONDS = 1


class Collector(threading.Thread):
    """One connection after another; takes the messages whose number is its own."""

    def __init__(self, collectors: Collectors, ledger: Ledger, number: int) -> None:
        super().__init__(daemon=True)
        self._collectors = collectors
        self._ledger = ledger
        self._number = number
        self._ending = threading.Event()

    def stop(self) -> None:
        self._ending.set()

    def run(self) -> None:
        while not self._ending.wait(PAUSE_SECONDS):
            # What was not deleted is fetched again.
            with (
                contextlib.suppress(OSError, imaplib.IMAP4.error),
                self._collectors.mx.imap(timeout=TIMEOUT_SECONDS) as session,
            ):
                while self._batch(session):
                    pass

    def _batch(self, session: imaplib.IMAP4_SSL) -> bool:
        """Fetch a batch, note it, and delete it only then; return whether there was one."""
        numbers = do(session, "SEARCH", "ALL")[0].split()
        mine = [n for n in numbers if int(n) % COLLECTORS == self._number][:BATCH]
        if not mine:
            return False
        batch = b",".join(mine).decode()
        for part in do(session, "FETCH", batch, "(BODY.PEEK[])"):
            if isinstance(part, tuple):
                self._ledger.collect(Message(part[1]))
        do(session, "STORE", batch, "+FLAGS.SILENT", r"(\Deleted)")
        status, said = session.expunge()
        if status != "OK":
            raise imaplib.IMAP4.error(said)
        return True


def do(session: imaplib.IMAP4_SSL, command: str, *arguments: str) -> list[Any]:
    """Run a UID command.

    Raises:
        imaplib.IMAP4.error: the server said no.
    """
    status, said = session.uid(command, *arguments)
    if status != "OK":
        raise imaplib.IMAP4.error(said)
    return said


class Collectors:
    """All connections of the platform; the next ones log in as `mx` says."""

    def __init__(self, mx: Mx, ledger: Ledger) -> None:
        self.mx = mx
        self._threads = [Collector(self, ledger, number) for number in range(COLLECTORS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join()
