"""Looks at everything at once, in a bounded time."""

from __future__ import annotations

import threading
import time

from oempro_mx.checks import (
    alarms,
    certificate,
    files,
    mailbox,
    platform,
    queue,
    services,
    space,
    system,
)
from oempro_mx.model import Check, CouldNotLookError, Finding, State
from oempro_mx.settings import Settings

DEADLINE_SECONDS = 40.0  # more than a check with two hanging commands takes

# In the order in which they are shown, under the name that is shown if one cannot look.
CHECKS: dict[str, Check] = {
    "services": services.units,
    "port 25": services.smtp,
    "mailbox ports": services.mailbox_ports,
    "delivery": services.delivery,
    "validator": services.validator,
    "firewall": services.firewall,
    "platform": platform.look,
    "queue": queue.look,
    "mailbox": mailbox.look,
    "certificate": certificate.look,
    "disk": space.look,
    "clock": system.clock,
    "updates": system.updates,
    "alarms": alarms.look,
    "files": files.look,
    "version": system.version,
}


def look_at_everything(
    settings: Settings,
    checks: dict[str, Check] | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> list[Finding]:
    """Return what all checks find. One that hangs is not waited for after the deadline."""
    checks = CHECKS if checks is None else checks
    found: dict[str, list[Finding]] = {}

    def look(name: str, check: Check) -> None:
        findings: list[Finding] = []
        try:
            findings.extend(check(settings))
        except CouldNotLookError as error:
            findings.append(Finding(name, State.COULD_NOT_LOOK, str(error), error.remedy))
        except Exception as error:  # noqa: BLE001 - the other checks are to be seen all the same
            reason = f"{type(error).__name__}: {error}"
            findings.append(Finding(name, State.COULD_NOT_LOOK, reason, "journalctl --lines=50"))
        found[name] = findings

    threads = [threading.Thread(target=look, args=each, daemon=True) for each in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + deadline_seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {deadline_seconds:.0f} s"
    return [
        finding
        for name in checks
        for finding in found.get(
            name, [Finding(name, State.COULD_NOT_LOOK, late, "dmesg | tail --lines=50")]
        )
    ]
