"""Mail that flows while something breaks, and a host that is rebooted."""

from __future__ import annotations

import contextlib
import smtplib
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from testinfra.host import Host

from probes import Mx, eventually

TESTHOST = Path(__file__).resolve().with_name("testhost.py")
MESSAGE = b"Subject: test\r\n\r\nHello.\r\n"
SENDERS = 8
PAUSE_SECONDS = 0.05  # of a sender between two messages: a steady stream, not a flood
BOOT_SECONDS = 120
# The host may be updating itself.
APT = "DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes --option=DPkg::Lock::Timeout=300"

# Nothing listens there: an attempt to connect is counted all the same.
OUTSIDE = "192.0.2.99"
# Why mail waits that would have to leave the host.
NO_WAY = "this host sends no mail"
# Postfix's programs that bring mail elsewhere, to another host or into a file.
SENDING = {"smtp", "local", "virtual", "pipe", "qmqpd"}


def services_that_send(services: str) -> list[str]:
    """Return what could send among the services that `postconf -M` lists."""
    fields = [line.split() for line in services.splitlines()]
    return [
        " ".join(service)
        for service in fields
        if service[7] in SENDING or (service[7] == "lmtp" and service[0] != "catchall")
    ]


class Flow:
    """Senders that send one message after another, as mail servers do, and note every answer."""

    def __init__(self, mx: Mx, domain: str) -> None:
        self.accepted: set[str] = set()
        self.replies: Counter[int] = Counter()
        self._mx = mx
        self._domain = domain
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(SENDERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, sender: int) -> None:
        number = 0
        while not self._stop.wait(PAUSE_SECONDS):
            number += 1
            recipient = f"bounce+{sender}-{number}@{self._domain}"
            # A connection that is refused or breaks off is none of the answers that count.
            with contextlib.suppress(OSError, smtplib.SMTPException):
                code = self._mx.send(recipient, MESSAGE).code
                with self._lock:
                    self.replies[code] += 1
                    if code == 250:
                        self.accepted.add(recipient)

    def wait_for(self, more: int) -> None:
        """Wait until so many more messages have been accepted."""
        goal = len(self.accepted) + more
        eventually(lambda: len(self.accepted), lambda seen: seen >= goal)


@contextlib.contextmanager
def rebooted(host: Host) -> Iterator[None]:
    """Reboot the host; wait at the end of the block until it is up again."""
    name = host.backend.get_hostname()
    before = host.check_output("cat /proc/sys/kernel/random/boot_id")
    host.run("systemd-run --on-active=1 systemctl reboot")
    yield

    def boot_id() -> object:
        with contextlib.suppress(RuntimeError):  # SSH does not answer
            return host.run("cat /proc/sys/kernel/random/boot_id").stdout.strip() or before
        return before

    eventually(boot_id, lambda seen: seen != before, BOOT_SECONDS)
    subprocess.run([TESTHOST, "wait", name], check=True)
