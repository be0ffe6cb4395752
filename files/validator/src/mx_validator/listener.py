"""The daemon's unix socket: there from the first moment without a gap, and never twice."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

MODE = 0o660  # for the daemon and the group of its directory, which Postfix is in
BACKLOG = 1024  # connections of a whole burst of smtpd processes wait here instead of failing


class AlreadyRunningError(Exception):
    """Another copy of the daemon holds the socket."""


class Listener:
    """A listening socket at a path. It replaces what a killed daemon left there."""

    def __init__(self, path: Path) -> None:
        """Bind, listen, and only then appear at `path`. Raises OSError if that is not possible."""
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
        """Close, and disappear from the path unless something else has taken our place there."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def only_copy(path: Path) -> Iterator[None]:
    """Hold the lock beside a socket's path. The kernel lets go of it when the process ends.

    Raises:
        AlreadyRunningError: Another process holds it.
        OSError: The lock file cannot be made.
    """
    # The file stays for ever: removing it would let two copies lock two different files.
    name = path.with_name(f"{path.name}.lock")
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise AlreadyRunningError(f"another copy is running: it holds {name}") from error
    finally:
        os.close(lock)
