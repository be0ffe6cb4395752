"""A conversation on port 25 as a sender has it, which ends before any mail."""

from __future__ import annotations

import errno
import ipaddress
import smtplib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

from oempro_mx.model import Finding, State, fail, ok, warn
from oempro_mx_check.settings import Host
from oempro_mx_check.tls import VERIFIABLE, context, context_for, served

ANSWER_SECONDS = 30.0
SENDER = "oempro-mx-check.invalid"  # RFC 2606 keeps .invalid for names that nobody has
FOREIGN = "oempro-mx-check@foreign.invalid"
LOCAL_PART = "oempro-mx-check"


@dataclass(frozen=True)
class Conversation:
    """What was seen at one address."""

    address: str
    connected: bool
    findings: tuple[Finding, ...]
    certificate: bytes | None = None  # DER, as it was served
    verified: bool = False  # by this machine's CAs, for the host's name

    def judged(self, reached: frozenset[str]) -> list[Finding]:
        """Return the findings, when it is known in which families this machine reached any MX.

        If it reached none, its own provider may be what closes port 25; else the host is.
        """
        if self.connected or family(self.address) not in reached:
            return list(self.findings)
        return [fail(each.name, each.seen, each.remedy) for each in self.findings]


def family(address: str) -> str:
    """Return IPv4 or IPv6."""
    return f"IPv{ipaddress.ip_address(address).version}"


def converse(host: Host, address: str, domain: str | None) -> Conversation:
    """Talk to port 25: greeting, STARTTLS, a domain of the platform and a foreign one."""
    name = f"SMTP {family(address)}"
    again = f"openssl s_client -starttls smtp -connect {_literal(address)}:25"
    try:
        client = smtplib.SMTP(local_hostname=SENDER, timeout=ANSWER_SECONDS)
        code, greeting = client.connect(address, 25)
    except (OSError, smtplib.SMTPException) as error:
        return Conversation(address, False, (_unreachable(name, address, error),))
    with client:
        greeted = greeting.decode(errors="replace")
        if code != 220 or greeted.split()[:1] != [host.hostname]:
            seen = f"{address} does not greet as {host.hostname}, but says {code} {greeted}"
            return Conversation(address, True, (fail(name, seen, again),))
        try:
            client.starttls(context=context_for(host))
            found = served(host, client.sock)
            reload = "systemctl reload postfix"
            findings = [fail(name, f"{address} {found.problem}", reload)] if found.problem else []
            findings += _recipients(client, name, address, domain)
        except ssl.SSLCertVerificationError as error:
            seen = f"{address} has a certificate that cannot be verified: {error.verify_message}"
            remedy = f"{host.playbook} --tags tls,dovecot,postfix"
            return Conversation(address, True, (fail(name, seen, remedy),), _peek(host, address))
        except (OSError, smtplib.SMTPException) as error:
            return Conversation(address, True, (fail(name, f"{address}: {error}", again),))
    if not findings:
        seen = f"{address} has STARTTLS with the host's certificate, takes mail for {domain}, and"
        findings = [ok(name, f"{seen} no other")]
    verified = host.certificate_mode in VERIFIABLE
    return Conversation(address, True, tuple(findings), found.certificate, verified)


def _recipients(
    client: smtplib.SMTP, name: str, address: str, domain: str | None
) -> Iterable[Finding]:
    client.ehlo()
    client.mail("<>")
    if domain is None:
        seen = f"{address} was not asked to take mail: no domain of the platform is known yet"
        yield Finding(name, State.COULD_NOT_LOOK, seen, "mx-validator domains --platform")
    else:
        code, text = _rcpt(client, f"{LOCAL_PART}@{domain}")
        if code // 100 != 2:
            seen = f"{address} does not take mail for {domain}: {code} {text}"
            yield fail(name, seen, f"mx-validator check {domain}")
    code, text = _rcpt(client, FOREIGN)
    check = f"mx-validator check {FOREIGN.partition('@')[2]}"
    if code // 100 == 2:
        yield fail(name, f"{address} takes mail for a foreign domain: {code} {text}", check)
    elif code // 100 == 4:
        yield warn(name, f"{address} cannot refuse a foreign domain now: {code} {text}", check)
    client.rset()


def _rcpt(client: smtplib.SMTP, recipient: str) -> tuple[int, str]:
    code, text = client.rcpt(f"<{recipient}>")
    return code, text.decode(errors="replace")


def _unreachable(name: str, address: str, error: Exception) -> Finding:
    remedy = f"nc -vz {address} 25 # from another network"
    if isinstance(error, OSError) and error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
        seen = f"this machine has no way to {address}: {error.strerror}"
    else:
        seen = f"no answer from {address}, or this machine's provider lets no port 25 out: {error}"
    return Finding(name, State.COULD_NOT_LOOK, seen, remedy)


def _peek(host: Host, address: str) -> bytes | None:
    """Return the certificate of a host that cannot be verified, for TLSA records."""
    try:
        with smtplib.SMTP(address, 25, SENDER, timeout=ANSWER_SECONDS) as client:
            client.starttls(context=context(host.hostname, verify=False))
            return served(host, client.sock).certificate
    except (OSError, smtplib.SMTPException):
        return None


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address
