"""Logins as the platform does them, with the real password; nothing is read or changed."""

from __future__ import annotations

import imaplib
import poplib
import ssl
from collections.abc import Callable, Iterator

from oempro_mx.model import Finding, State, fail, ok
from oempro_mx_check.settings import Host
from oempro_mx_check.smtp import family
from oempro_mx_check.tls import context_for, served

ANSWER_SECONDS = 30.0
IN_USE = b"[IN-USE]"  # RFC 2449 8.1.1: another session holds the mailbox


class _RefusedError(Exception):
    """The password is not accepted."""


def look(host: Host, addresses: list[str]) -> Iterator[Finding]:
    """Log in at each address by each protocol; after a refusal no more, for the MX would ban us."""
    for address in addresses:
        for protocol in host.protocols:
            name = f"{protocol} {family(address)}"
            try:
                yield _log_in(host, address, protocol, name)
            except _RefusedError as error:
                seen = f"{address} refuses the password of the inventory: {error}"
                yield fail(name, seen, f"{host.playbook} --tags dovecot")
                return


def _log_in(host: Host, address: str, protocol: str, name: str) -> Finding:
    try:
        problem = _LOGINS[protocol](host, address)
    except ssl.SSLCertVerificationError as error:
        seen = f"{address} has a certificate that cannot be verified: {error.verify_message}"
        return fail(name, seen, f"{host.playbook} --tags tls,dovecot,postfix")
    except OSError as error:
        seen = (
            f"no answer from {address}: {error}. firewall_mailbox_sources may not name this machine"
        )
        remedy = "run the check from a network of firewall_mailbox_sources"
        return Finding(name, State.COULD_NOT_LOOK, seen, remedy)
    except (imaplib.IMAP4.error, poplib.error_proto) as error:
        return fail(name, f"{address}: {error}", "tail /var/log/dovecot.log")
    if problem:
        return fail(name, f"{address} {problem}", "systemctl reload dovecot")
    return ok(name, f"{address} lets {host.username} in, with the host's certificate")


def _imap(host: Host, address: str, *, encrypted: bool) -> str:
    if encrypted:
        client: imaplib.IMAP4 = imaplib.IMAP4_SSL(
            address, ssl_context=context_for(host), timeout=ANSWER_SECONDS
        )
    else:
        client = imaplib.IMAP4(address, timeout=ANSWER_SECONDS)
    with client:
        if not encrypted:
            client.starttls(context_for(host))
        problem = served(host, client.sock).problem
        try:
            client.login(host.username, host.password)
        except imaplib.IMAP4.error as error:
            raise _RefusedError(str(error)) from error
        client.select("INBOX", readonly=True)
    return problem


def _pop3(host: Host, address: str, *, encrypted: bool) -> str:
    client = (
        poplib.POP3_SSL(address, context=context_for(host), timeout=ANSWER_SECONDS)
        if encrypted
        else poplib.POP3(address, timeout=ANSWER_SECONDS)
    )
    try:
        if not encrypted:
            client.stls(context_for(host))
        problem = served(host, client.sock).problem
        try:
            client.user(host.username)
            client.pass_(host.password)
        except poplib.error_proto as error:
            if IN_USE not in error.args[0]:
                raise _RefusedError(str(error)) from error
        client.quit()
    finally:
        client.close()
    return problem


_LOGINS: dict[str, Callable[[Host, str], str]] = {
    "imaps": lambda host, address: _imap(host, address, encrypted=True),
    "imap": lambda host, address: _imap(host, address, encrypted=False),
    "pop3s": lambda host, address: _pop3(host, address, encrypted=True),
    "pop3": lambda host, address: _pop3(host, address, encrypted=False),
}
