"""Looks at everything from outside, and puts it in order."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from oempro_mx.model import CouldNotLookError, Finding, State, ok
from oempro_mx_check import domains, host_records, mailbox
from oempro_mx_check.names import Names
from oempro_mx_check.settings import Host, Mxs, Settings
from oempro_mx_check.smtp import Conversation, converse, family


class Section(NamedTuple):
    """What belongs together in the report."""

    title: str
    findings: list[Finding]


@dataclass(frozen=True)
class _Visit:
    """What was seen of one host."""

    host: Host
    addresses: list[str]  # at which senders find it, or else Ansible
    findings: list[Finding]
    conversations: list[Conversation]


def look(settings: Settings) -> list[Section]:
    """Return all findings. Raises dns.resolver.NoResolverConfiguration."""
    names = Names(settings.resolvers)
    with ThreadPoolExecutor() as pool:
        visits = list(pool.map(lambda host: _visit(host, names), settings.hosts))
    talks = [talk for visit in visits for talk in visit.conversations]
    reached = frozenset(family(talk.address) for talk in talks if talk.connected)
    mxs = Mxs(
        settings.hostnames,
        frozenset(address for visit in visits for address in visit.addresses),
        all(talk.verified for talk in talks),
    )
    return [
        *(section for visit in visits for section in _sections(visit, reached)),
        _domains(settings, mxs, names),
    ]


def _visit(host: Host, names: Names) -> _Visit:
    findings = _asked("address", host_records.look_at_addresses(host, names))
    addresses = _addresses(host, names)
    domain = next(iter(host.known_good + host.listed), None)
    talks = [converse(host, address, domain) for address in addresses]
    findings += mailbox.look(host, addresses)
    for address in addresses:
        findings += _asked("PTR", host_records.look_at_reverse(host, address, names))
    findings += _asked("SPF", host_records.look_at_spf(host, names))
    for certificate in {talk.certificate for talk in talks if talk.certificate}:
        findings += _asked("TLSA", host_records.look_at_tlsa(host, certificate, names))
    return _Visit(host, addresses, findings, talks)


def _addresses(host: Host, names: Names) -> list[str]:
    """Return the addresses in DNS, where senders look; without any, where Ansible goes."""
    with contextlib.suppress(CouldNotLookError):
        if published := names.addresses(host.hostname):
            return published
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host.address, 25, type=socket.SOCK_STREAM)
        return sorted({str(each[4][0]) for each in found})
    return []


def _asked(name: str, findings: Iterator[Finding]) -> list[Finding]:
    """Return the findings, or that DNS has not answered."""
    try:
        return list(findings)
    except CouldNotLookError as error:
        return [Finding(name, State.COULD_NOT_LOOK, str(error), error.remedy)]


def _sections(visit: _Visit, reached: frozenset[str]) -> tuple[Section, Section]:
    talked = [each for talk in visit.conversations for each in talk.judged(reached)]
    name = visit.host.name
    return (
        Section(f"{name}, on the host", _on_the_host(visit.host)),
        Section(f"{name}, from outside", talked + visit.findings),
    )


def _on_the_host(host: Host) -> list[Finding]:
    """Return what `oempro-mx status` has found there."""
    try:
        return [
            Finding(each["name"], State(each["state"]), each["seen"], each["remedy"])
            for each in json.loads(host.status)["findings"]
        ]
    except ValueError:
        seen = f"oempro-mx status gave no answer: {host.status_error}"
        return [Finding("status", State.COULD_NOT_LOOK, seen, host.playbook)]


def _domains(settings: Settings, mxs: Mxs, names: Names) -> Section:
    listed = settings.domains()
    findings, well = domains.look(listed, mxs, names)
    for host in settings.hosts:
        for error in host.domains_errors:
            seen = f"{host.name} does not know all domains: {error}"
            remedy = "mx-validator status; mx-validator domains --platform"
            findings.append(Finding("domains", State.COULD_NOT_LOOK, seen, remedy))
    if well or not listed:
        hosts = " and ".join(settings.hostnames)
        seen = f"mail for {well} of {len(listed)} domains comes to {hosts}"
        findings.insert(0, ok("MX", seen if listed else "no domain of the platform is known yet"))
    return Section("domains of the platform", findings)
