"""Whether the file system of Postfix's queue has free inodes.

Postfix looks at the free space before it takes a message (postconf(5), queue_minfree), but not at
the free inodes. Without one its cleanup(8) tries again and again, while the sender waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

# Enough for the messages that come in between two updates, and for the mailbox's files.
MIN_FREE_INODES = 10_000
MIN_FREE_DIVISOR = 10  # a small file system needs a tenth of its inodes free instead

logger = logging.getLogger(__name__)


class QueueSpace:
    """The free inodes of a directory's file system, as of the last update."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.free_inodes: int | None = None  # None: the file system does not count them
        self.is_short = False
        self.update()

    def update(self) -> None:
        """Read the figures; to be called about once a second. Logs when `is_short` changes."""
        with contextlib.suppress(OSError):  # the last figures stay
            figures = os.statvfs(self._directory)
            self.free_inodes = figures.f_favail if figures.f_files else None
            least = min(MIN_FREE_INODES, figures.f_files // MIN_FREE_DIVISOR)
            was_short = self.is_short
            self.is_short = figures.f_files > 0 and figures.f_favail < least
            if self.is_short and not was_short:
                logger.error(
                    "only %d free inodes for the mail queue in %s: all mail gets 452 until there"
                    " are %d; see that the platform fetches and deletes its mail",
                    *(figures.f_favail, self._directory, least),
                )
            elif was_short and not self.is_short:
                logger.warning("%d free inodes again: mail is accepted", figures.f_favail)
