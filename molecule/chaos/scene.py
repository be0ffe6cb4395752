"""Whom a disaster happens to, and what one is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collector import Collectors
from faults import OUTSIDE, services_that_send
from ledger import Ledger
from platform_stub import StubClient
from probes import Mx, eventually
from sender import Senders
from shell import run
from testhost import Host

RECOVERY_SECONDS = 60  # until mail is accepted again without anybody's help


@dataclass(frozen=True)
class Scene:
    """The host, its platform, and all who send to it and fetch from it."""

    host: Host
    mx: Mx
    stub: StubClient
    ledger: Ledger
    senders: Senders
    collectors: Collectors
    site: Callable[..., Any]
    random: random.Random

    def shell(self, command: str) -> str:
        """Run a command on the host as root."""
        return run(*self.host.ssh(command))

    def hold(self) -> None:
        """Let it last."""
        time.sleep(self.random.uniform(1, 3))

    def accepted_again(self) -> float:
        """Wait until mail is accepted; return how long it took, in seconds."""
        began = time.time()
        eventually(lambda: self.ledger.count("accepted", began), seconds=RECOVERY_SECONDS)
        return time.time() - began

    def fetched_again(self) -> None:
        """Wait until mail that is accepted from now on is delivered and fetched."""
        began = time.time()
        eventually(lambda: self.ledger.fetched_of(began), seconds=RECOVERY_SECONDS)

    def cannot_send(self) -> None:
        """Require that the firewall refuses what is sent, and that Postfix has no client."""
        before = self.host.smtp_attempts()
        tried = self.shell(f"timeout 5 bash -c ': < /dev/tcp/{OUTSIDE}/25' 2>&1 || true")
        assert "Connection refused" in tried, tried
        assert self.host.smtp_attempts() == before
        assert services_that_send(self.shell("postconf -M")) == []


@dataclass(frozen=True)
class Disaster:
    """One of them; `strike` returns when it is over, and leaves nothing broken on purpose."""

    name: str
    strike: Callable[[Scene], object]
