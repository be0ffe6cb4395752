"""The daemon's unix socket: replaced without a gap at a restart, and never served twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

MODE = 0o660  # for the daemon and the group of its directory, which is Postfix's
BACKLOG = 1024  # connections that wait for accept(): a whole burst of smtpd processes


class AlreadyRunningError(Exception):
    """Another daemon serves the socket."""


class Listener:
    """A listening socket at a path. It replaces a stale socket that a killed daemon left there."""

    def __init__(self, path: Path) -> None:
        """Bind and listen under another name, then rename to `path`. Raises OSError on failure."""
        self._path = path
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(str(temporary))
            temporary.chmod(MODE)
            self.socket.listen(BACKLOG)
            self._identity = _identity(temporary)
            temporary.rename(path)
        except OSError:
            self.socket.close()
            temporary.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Close, and unlink the path unless another socket has replaced this one there."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def single_instance(path: Path) -> Iterator[None]:
    """Hold a lock file beside a socket's path. The kernel releases it when the process ends.

    Raises:
        AlreadyRunningError: Another process holds the lock.
        OSError: The lock file cannot be made.
    """
    # The file is never removed: otherwise two daemons could lock two different files.
    name = path.with_name(f"{path.name}.lock")
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise AlreadyRunningError(f"another copy is running: it holds {name}") from error
    finally:
        os.close(lock)
