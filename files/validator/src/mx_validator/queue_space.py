"""Whether the file system of Postfix's queue has room for one more file.

Postfix looks at the free space before it takes a message (postconf(5), queue_minfree), not at the
free inodes. Without one its cleanup(8) tries again and again, while the sender and an smtpd wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

# Enough for the messages that are under way between two looks, and for the mailbox's files.
MIN_FREE_INODES = 10_000
MIN_FREE_PART = 10  # of a small file system: a tenth, or it would never have room

logger = logging.getLogger(__name__)


class Room:
    """What the last look at the file system of a directory has shown."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.free_inodes: int | None = None  # None: the file system does not count them
        self.is_short = False
        self.look()

    def look(self) -> None:
        """Look again; to be called about once a second. Says so once when room ends or returns."""
        with contextlib.suppress(OSError):  # what was seen last stays
            seen = os.statvfs(self._directory)
            self.free_inodes = seen.f_favail if seen.f_files else None
            least = min(MIN_FREE_INODES, seen.f_files // MIN_FREE_PART)
            was_short, self.is_short = self.is_short, seen.f_files > 0 and seen.f_favail < least
            if self.is_short and not was_short:
                logger.error(
                    "only %d free inodes for the mail queue in %s: all mail is told to come back"
                    " until there are %d; see that the platform fetches and deletes its mail",
                    *(seen.f_favail, self._directory, least),
                )
            elif was_short and not self.is_short:
                logger.warning("%d free inodes again: mail is taken", seen.f_favail)
