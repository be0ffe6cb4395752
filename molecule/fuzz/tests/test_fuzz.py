"""Whole SMTP sessions made at random: what got a 250 is in the mailbox, once, and nothing else is.

MX_FUZZ_SEED says which sessions, MX_FUZZ_SECONDS for how long (there is a least number of them),
and MX_FUZZ_SESSION names a single one, to see it again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from addresses import OWN
from platform_stub import StubClient
from probes import Mx, eventually
from replies import Fault
from report import dialogue
from runner import Outcome, Runner
from session import make

SEED = int(os.environ.get("MX_FUZZ_SEED", "1"))
SECONDS = float(os.environ.get("MX_FUZZ_SECONDS", "0"))
SESSION = os.environ.get("MX_FUZZ_SESSION", "")
BATCH = 100
LEAST = 2 * BATCH  # sessions
FAILURES = 10  # failing sessions are enough
MINIMISED = 5  # of them
MINIMISE_SECONDS = 30.0  # for one of them
# Kinds of recipients and ways of messages; each has to have been taken so often in a run.
TAKEN_LEAST = 5
KINDS = (
    *("plain", "quoted", "leading hyphen", "needless quotes", "trailing dot", "postmaster"),
    *("utf-8", "loose", "odd dots", "long local part"),
)
WAYS = ("DATA", "BDAT", "TLS", "pipelined")


@pytest.fixture
def runner(host: Host, mailbox: Mx, platform: StubClient) -> Runner:
    """The MX with the domains of the fuzzer known; everything else is foreign."""
    for domain in OWN:
        platform.answer(domain, "allow")
        eventually(lambda: mailbox.rcpt(f"a@{domain}").code, lambda code: code == 250)  # noqa: B023
    return Runner(mailbox, host)


def batches() -> Iterator[range]:
    """The numbers of the sessions to run, in batches, until the time is over."""
    if SESSION:
        yield range(int(SESSION), int(SESSION) + 1)
        return
    ends = time.monotonic() + SECONDS
    begin = 0
    while begin < LEAST or time.monotonic() < ends:
        yield range(begin, begin + BATCH)
        begin += BATCH


def explained(runner: Runner, hostname: str, faults: list[Fault]) -> str:
    """The failing sessions, each made small, with a command that runs it again."""
    by_session: dict[int, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_session[fault.number].append(fault)
    lines: list[str] = []
    for number, found in sorted(by_session.items()):
        lines += ["", *(f"{each!s:.1500}" for each in found)]
        lines.append(f"Again: make fuzz-mail SEED={SEED} SESSION={number}")
        if number < 0 or number not in sorted(by_session)[:MINIMISED]:
            continue
        small = runner.smallest(
            make(SEED, number, hostname), {f.kind for f in found}, MINIMISE_SECONDS
        )
        if small.faults:
            lines += ["Made smaller:", *(f"  {each!s:.1500}" for each in small.faults)]
            lines += [f"  {line}" for line in dialogue(small.transcripts[0])]
        else:
            lines.append("Alone it does not fail.")
    return "\n".join(lines)


def test_what_got_a_250_is_in_the_mailbox(
    runner: Runner,
    mx: Mx,
    smtp_attempts: Callable[[], int],
    record_property: Callable[[str, object], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    attempts = smtp_attempts()
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    deliveries = sessions = 0
    for numbers in batches():
        outcome: Outcome = runner.run([make(SEED, number, mx.hostname) for number in numbers])
        faults += outcome.faults
        counts += outcome.counts
        ways += outcome.ways
        sessions += len(numbers)
        deliveries += sum(len(each.recipients) for each in outcome.deliveries if each.sure)
        if SESSION:
            lines = [f"\n{mx.hostname}:", *dialogue(outcome.transcripts[0])]
            with capfd.disabled():
                print(*lines, sep="\n", file=sys.stderr)
        if len({fault.number for fault in faults}) >= FAILURES:
            break
    assert not faults, explained(runner, mx.hostname, faults)
    assert smtp_attempts() == attempts
    done = f"{sessions} sessions, {counts.total()} recipients, {deliveries} of them delivered"
    record_property("done", done)
    if not SESSION:  # a host that refuses much would pass
        assert all(counts[f"{kind} 250"] >= TAKEN_LEAST for kind in KINDS), counts
        assert all(ways[way] >= TAKEN_LEAST for way in WAYS), ways
        assert 2 * deliveries > counts.total(), counts
