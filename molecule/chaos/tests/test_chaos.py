"""One disaster after another while mail flows and is fetched.

MX_CHAOS_SECONDS says for how long (every disaster comes at least once), MX_CHAOS_SEED which mail
and which order; the same seed gives the same again.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

import testhost
from collector import Collectors
from disasters import DISASTERS, plan
from faults import APT
from ledger import Ledger
from platform_stub import StubClient
from probes import Mx, eventually
from scene import Scene
from sender import Senders, foreign_domains

SECONDS = float(os.environ.get("MX_CHAOS_SECONDS", "0"))
SEED = int(os.environ.get("MX_CHAOS_SEED", "1"))
PROBED = "relay-probe.invalid"  # the playbook requires that it is refused
DELIVERY_SECONDS = 180  # until all mail is fetched, when nothing breaks any more
COLUMNS = ("accepted", "deferred", "broken", "doubtful")


def table(rows: list[tuple[str, float, float, float]], ledger: Ledger) -> str:
    """What senders met in each kind of disaster, from its begin until mail was accepted again."""
    head = f"{'disaster':<42}{'times':>6}{'lasted':>8}{'back in':>8}"
    lines = [head + "".join(f"{name:>10}" for name in (*COLUMNS, "lost"))]
    missing = ledger.missing()
    lost = [e for e in ledger.events if e.kind == "accepted" and e.recipient in missing]
    for name in sorted({row[0] for row in rows}):
        mine = [row for row in rows if row[0] == name]
        times = [(began, ended + back) for _, began, ended, back in mine]
        cells = [sum(ledger.count(kind, *t) for t in times) for kind in COLUMNS]
        cells.append(sum(began <= e.time <= ended for e in lost for began, ended in times))
        lasted = sum(ended - began for _, began, ended, _ in mine)
        back = max(row[3] for row in mine)
        lines.append(
            f"{name:<42}{len(mine):>6}{lasted:>7.0f}s{back:>7.1f}s"
            + "".join(f"{cell:>10}" for cell in cells)
        )
    return "\n".join(lines)


def test_accepted_means_delivered(
    host: Host,
    mailbox: Mx,
    platform: StubClient,
    site: Callable[..., Any],
    smtp_attempts: Callable[[], int],
    record_property: Callable[[str, object], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "MX_INVENTORY" in os.environ:
        pytest.skip("breaks what only a test host has")
    host.check_output(f"{APT} install libfaketime")
    name = host.backend.get_hostname()
    suffix = f"chaos-{SEED}.{name}.example"
    platform.default("allow")
    for domain in (*foreign_domains(suffix), PROBED):
        platform.answer(domain, "deny")

    ledger = Ledger()
    rows = []
    began = time.monotonic()
    with Collectors(mailbox, ledger) as collectors:
        with Senders(mailbox, ledger, suffix, SEED) as senders:
            scene = Scene(
                testhost.Host(testhost.this_lab(), name),
                *(mailbox, platform, ledger, senders, collectors, site, random.Random(SEED)),
            )
            scene.accepted_again()
            for number, disaster in enumerate(plan(SEED)):
                if number >= len(DISASTERS) and time.monotonic() > began + SECONDS:
                    break
                struck = time.time()
                disaster.strike(scene)
                over = time.time()
                rows.append((disaster.name, struck, over, scene.accepted_again()))
                assert smtp_attempts() == 0, disaster.name
                with capfd.disabled():  # an hour is long
                    print(f"{name}: {disaster.name}: {over - struck:.0f} s", file=sys.stderr)

        def left() -> set[str]:
            host.run("postqueue -f")
            return ledger.missing()

        try:
            eventually(left, lambda seen: not seen, DELIVERY_SECONDS)
            eventually(mailbox.count, lambda seen: not seen, DELIVERY_SECONDS)
        except AssertionError:
            pass  # the verdict says it better

    verdict = ledger.judge([(began, ended + back) for _, began, ended, back in rows])
    record_property("\n" + table(rows, ledger), "")
    record_property(
        "in all",
        f"{ledger.count('accepted')} accepted, {len(ledger.copies)} fetched, "
        f"{len(verdict.lost)} lost; {ledger.count('denied')} to foreign domains refused; "
        f"twice: {verdict.doubtful} sent again in doubt, {verdict.handover} delivered again",
    )
    assert not verdict.broken, "\n".join([table(rows, ledger), *verdict.broken])
    assert host.check_output("postqueue -j") == ""
    assert mailbox.count() == 0
    assert ledger.count("denied") > 0
