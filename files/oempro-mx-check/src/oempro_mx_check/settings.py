"""What the playbook tells about the hosts, read from standard input: it has a password in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Host:
    """One MX, as the inventory and the host itself describe it."""

    name: str  # in the inventory
    hostname: str  # with which Postfix greets
    address: str  # at which Ansible reaches it
    own_addresses: list[str]  # of its network interface; behind NAT, not the public ones
    username: str  # of the mailbox
    password: str = field(repr=False)
    protocols: list[str]  # of Dovecot: imaps, pop3s, imap, pop3
    certificate_mode: str  # selfsigned, provided or acme
    certificate: str  # PEM, its own certificate first; empty if it could not be read
    status: str  # what `oempro-mx status --json` printed
    status_error: str  # or why it did not
    known_good: list[str]  # domains
    listed: list[str]  # domains on the platform's list
    domains_errors: list[str]  # why one of the two could not be read, or not as a whole
    playbook: str  # the command of a run for this host


@dataclass(frozen=True)
class Settings:
    """The whole of it."""

    hosts: list[Host]  # that are looked at
    hostnames: list[str]  # of all MX hosts, looked at or not
    resolvers: list[str]  # addresses of DNS servers; none: those of this machine

    @classmethod
    def read(cls, text: str) -> Settings:
        """Read the JSON that roles/check makes. Raises ValueError, KeyError or TypeError."""
        values: dict[str, Any] = json.loads(text)
        hosts = [
            Host(**{each.name: host[each.name] for each in fields(Host)})
            for host in values["hosts"]
        ]
        return cls(hosts, values["hostnames"], values["resolvers"])

    def domains(self) -> list[str]:
        """Return all domains of the platform that are known: on disk, or on its list."""
        return sorted({domain for host in self.hosts for domain in host.known_good + host.listed})


@dataclass(frozen=True)
class Mxs:
    """What the DNS of the domains is compared with."""

    hostnames: list[str]
    addresses: frozenset[str]  # of all of them
    verifiable: bool  # whether senders can verify the certificate of every host
