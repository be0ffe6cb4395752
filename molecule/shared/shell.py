"""Running programs, and finding and ending processes, for the test hosts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STOP_SECONDS = 30


class TestHostError(Exception):
    """What went wrong and what to do about it, for the person at the terminal."""


def run(*command: str, stdin: str | None = None, check: bool = True) -> str:
    """Run a command and return its standard output.

    Raises:
        TestHostError: it failed (with ``check``); the message has its standard error.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise TestHostError(
            f"{error.filename} is not there; run `make setup`, or: apt-get install "
            "mmdebstrap systemd-container iproute2 nftables openssh-client"
        ) from None
    if check and done.returncode != 0:
        raise TestHostError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for the time of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def processes(wanted: Callable[[list[str]], bool]) -> list[int]:
    """Return the processes whose command line is a wanted one, the oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if wanted(entry.read_bytes().decode(errors="replace").split("\0")):
                found.append(int(entry.parent.name))
    return sorted(found)


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until something holds.

    Raises:
        TestHostError: it did not in STOP_SECONDS, with the text that says what does not.
    """
    deadline = time.monotonic() + STOP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TestHostError(otherwise)
        time.sleep(0.05)


def kill(victims: list[int]) -> None:
    """Kill processes and wait until they are gone."""
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in victims),
        f"processes {victims} do not end; kill them by hand",
    )
