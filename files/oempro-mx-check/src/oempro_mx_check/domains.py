"""The DNS of the platform's domains: their mail has to come to these hosts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import dns.rdtypes.ANY.MX

from oempro_mx.model import CouldNotLookError, Finding, State, fail, warn
from oempro_mx_check.host_records import PUBLISH
from oempro_mx_check.names import Names
from oempro_mx_check.settings import Mxs
from oempro_mx_check.sts import look_at_sts

LOOKUPS_AT_ONCE = 32
SWEEP_SECONDS = 600.0  # for all domains; what was not asked by then is said
SHOWN = 20  # of the domains of which nothing was learned; each other finding is shown


def look(domains: list[str], mxs: Mxs, names: Names) -> tuple[list[Finding], int]:
    """Return what is not well with the domains, and the number of those with which all is."""
    deadline = time.monotonic() + SWEEP_SECONDS

    def findings(domain: str) -> list[Finding]:
        if time.monotonic() > deadline:
            late = f"{domain} was not looked up: the others took {SWEEP_SECONDS:.0f} s"
            return [Finding("MX", State.COULD_NOT_LOOK, late, f"dig {domain} MX")]
        try:
            return [*look_at_mx(domain, mxs, names), *look_at_sts(domain, mxs, names)]
        except CouldNotLookError as error:
            seen = f"{domain}: {error}"
            return [Finding("MX", State.COULD_NOT_LOOK, seen, error.remedy)]

    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:
        found = list(pool.map(findings, domains))
    listed = [finding for each in found for finding in each]
    return _shortened(listed), sum(not each for each in found)


def look_at_mx(domain: str, mxs: Mxs, names: Names) -> Iterator[Finding]:
    """Judge a domain's MX records, at the end of its CNAMEs if it has any."""
    records = names.look_up(domain, "MX")
    where = domain if records.canonical == domain else f"{domain} (an alias of {records.canonical})"
    targets = [
        value.exchange.to_text(omit_final_dot=True).lower()
        for value in records.values
        if isinstance(value, dns.rdtypes.ANY.MX.MX)
    ]
    wanted = "\n".join(
        f"{PUBLISH}{records.canonical}. MX 10 {hostname}." for hostname in mxs.hostnames
    )
    if not targets:
        yield fail("MX", f"{where} has no MX record", wanted)
        return
    strangers, aliases = [], []
    for target in sorted(set(targets) - set(mxs.hostnames)):
        addresses = set(names.addresses(target))
        if not addresses or not addresses <= mxs.addresses:
            strangers.append(target)
        elif names.look_up(target, "A").canonical != target:
            aliases.append(target)
    missing = sorted(set(mxs.hostnames) - set(targets)) if len(mxs.hostnames) > 1 else []
    if len(strangers) == len(set(targets)):
        yield fail("MX", f"mail for {where} goes to {', '.join(strangers)}", wanted)
    elif aliases:
        # RFC 2181 10.3 forbids it, and some senders do not follow it.
        seen = f"the MX record of {where} names {', '.join(aliases)}, which is an alias (CNAME)"
        yield fail("MX", seen, wanted)
    elif strangers:
        yield warn("MX", f"some mail for {where} goes to {', '.join(strangers)}", wanted)
    elif missing:
        yield warn("MX", f"{where} does not name {', '.join(missing)}", wanted)


def _shortened(findings: list[Finding]) -> list[Finding]:
    unknown = [each for each in findings if each.state is State.COULD_NOT_LOOK]
    known = [each for each in findings if each.state is not State.COULD_NOT_LOOK]
    left = len(unknown) - SHOWN
    if left <= 0:
        return known + unknown
    more = f"and so are {left} further domains"
    return [*known, *unknown[:SHOWN], dataclasses.replace(unknown[SHOWN], seen=more)]
