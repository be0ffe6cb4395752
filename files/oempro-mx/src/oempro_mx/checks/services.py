"""The services: whether they run, and whether they answer where they should."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Iterator

from oempro_mx.commands import run, run_any
from oempro_mx.model import Finding, fail, ok, warn
from oempro_mx.settings import Settings

ANSWER_SECONDS = 10.0
LOCAL = "127.0.0.1"
LMTP_SOCKET = "/var/spool/postfix/dovecot/lmtp"
MAIL_UNITS = {"postfix.service", "dovecot.service", "supervisor.service"}  # no mail without them
PORTS = {"imaps": 993, "pop3s": 995, "imap": 143, "pop3": 110}
GREETINGS = {"imaps": "* OK", "pop3s": "+OK", "imap": "* OK", "pop3": "+OK"}


def unverified() -> ssl.SSLContext:
    """Return TLS without verification: the name 127.0.0.1 is in no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(protocol: str) -> socket.socket:
    """Connect to a port of the mailbox, with TLS where it is spoken from the first byte."""
    plain = socket.create_connection((LOCAL, PORTS[protocol]), ANSWER_SECONDS)
    return unverified().wrap_socket(plain) if protocol.endswith("s") else plain


def units(settings: Settings) -> Iterator[Finding]:
    """Look whether systemd runs the units, also after a reboot, and whether others have failed."""
    properties = "--property=Id,ActiveState,SubState,UnitFileState"
    well = []
    for block in run("systemctl", "show", properties, *settings.units).strip().split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines())
        name = unit["Id"]
        if unit["ActiveState"] not in {"active", "reloading"}:
            judge = fail if name in MAIL_UNITS else warn
            state = f"{name} is {unit['ActiveState']} ({unit['SubState']})"
            yield judge("services", state, f"systemctl restart {name}")
        elif unit["UnitFileState"] not in {"enabled", "enabled-runtime", "static"}:
            seen = f"{name} does not start with the host"
            yield warn("services", seen, f"systemctl enable {name}")
        else:
            well.append(name.removesuffix(".service"))
    listed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    for name in (line.split()[0] for line in listed.splitlines()):
        if name not in settings.units:
            yield warn("services", f"{name} has failed", f"systemctl restart {name}")
    if well:
        yield ok("services", f"{', '.join(well)} run")


def smtp(settings: Settings) -> Iterator[Finding]:
    """Begin a transaction as a sender does."""
    name, remedy = "port 25", "systemctl restart postfix"
    try:
        with smtplib.SMTP(timeout=ANSWER_SECONDS) as client:
            code, banner = client.connect(LOCAL, 25)
            if not f"{banner.decode(errors='replace')} ".startswith(f"{settings.hostname} "):
                yield fail(name, f"answers {code} {banner!r}", remedy)
                return
            client.ehlo_or_helo_if_needed()
            if not client.has_extn("starttls"):
                yield warn(name, "does not offer STARTTLS", settings.playbook)
            code, text = client.mail("")
    except (OSError, smtplib.SMTPException) as error:
        yield fail(name, f"does not answer: {error}", remedy)
        return
    if code != 250:
        reply = f"{code} {text.decode(errors='replace')}"
        yield fail(name, f"every sender is told: {reply}", "df -h /var/spool/postfix")
        return
    yield ok(name, f"answers as {settings.hostname}, and takes mail")


def mailbox_ports(settings: Settings) -> Iterator[Finding]:
    """Wait for Dovecot's greeting on each port on which the platform may read."""
    for protocol in settings.protocols:
        name, remedy = f"port {PORTS[protocol]}", "systemctl restart dovecot"
        try:
            with connect(protocol) as connection:
                greeting = connection.recv(512).decode(errors="replace")
        except OSError as error:
            yield fail(name, f"does not answer: {error}", remedy)
            continue
        if greeting.startswith(GREETINGS[protocol]):
            yield ok(name, f"answers ({protocol})")
        else:
            yield fail(name, f"answers {greeting!r}", remedy)


def delivery(_: Settings) -> Iterator[Finding]:
    """Greet Dovecot where Postfix hands over mail."""
    try:
        with smtplib.LMTP(LMTP_SOCKET, timeout=ANSWER_SECONDS) as client:
            client.ehlo_or_helo_if_needed()
    except (OSError, smtplib.SMTPException) as error:
        seen = f"Dovecot takes no mail on {LMTP_SOCKET}: {error}"
        yield fail("delivery", seen, "systemctl restart dovecot")
        return
    yield ok("delivery", "Dovecot takes mail from Postfix")


def validator(_: Settings) -> Iterator[Finding]:
    """Ask Supervisor."""
    status, output, errors = run_any("supervisorctl", "status", "mx-validator")
    said = " ".join((output or errors).split())
    if status == 0:
        yield ok("validator", said.removeprefix("mx-validator "))
    elif said.startswith("mx-validator "):
        seen = said.removeprefix("mx-validator ")
        yield fail("validator", seen, "supervisorctl restart mx-validator")
    else:
        yield fail("validator", said, "systemctl restart supervisor")


def firewall(settings: Settings) -> Iterator[Finding]:
    """Look for our table in the kernel: nobody but the unit that loads it knows that it is gone."""
    if not settings.firewall:
        return
    status, _, errors = run_any("nft", "list", "table", "inet", "oempro_mx")
    if status == 0:
        yield ok("firewall", "the table oempro_mx is loaded")
    else:
        seen = f"the table oempro_mx is not loaded: {' '.join(errors.split())}"
        yield fail("firewall", seen, "systemctl restart oempro-mx-firewall")
