"""The certificate: its name and time, and whether it is the one that is served."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oempro_mx.checks.services import ANSWER_SECONDS, LOCAL, PORTS, connect, unverified
from oempro_mx.commands import run
from oempro_mx.model import Finding, fail, ok, warn
from oempro_mx.settings import Settings
from oempro_mx.text import duration

# What is left of a certificate's life when its renewal should have been long ago: a part of it, so
# that short lives fit, and at most some days, so that long ones do.
LEAST_LEFT = 0.2
MOST_DAYS_LEFT = 25
RENEWALS = {
    "selfsigned": "{playbook} --tags tls,dovecot,postfix",
    "provided": "{playbook} --tags tls,dovecot,postfix",  # after the new files were put there
    "acme": "certbot renew",
}


class Life(NamedTuple):
    """From when until when a certificate is valid, in seconds since 1970."""

    begin: float
    end: float


def life_of(file: str) -> Life:
    """Read the life of the first certificate in a file. Raises CouldNotLookError."""
    dates = run("openssl", "x509", "-in", file, "-noout", "-dates")
    values = dict(line.split("=", 1) for line in dates.splitlines())
    return Life(*(ssl.cert_time_to_seconds(values[key]) for key in ("notBefore", "notAfter")))


def judge_life(life: Life, now: float, mode: str, playbook: str) -> Finding:
    """Judge the time that is left."""
    name, left = "certificate", life.end - now
    remedy = RENEWALS[mode].format(playbook=playbook)
    least = min(LEAST_LEFT * (life.end - life.begin), MOST_DAYS_LEFT * 86400)
    renewed = f"made {duration(now - life.begin)} ago ({mode})"
    if left <= 0:
        return fail(name, f"it ended {duration(-left)} ago; {renewed}", remedy)
    if left < least:
        return warn(name, f"it ends in {duration(left)}, and was not renewed; {renewed}", remedy)
    return ok(name, f"good for {duration(left)}; {renewed}")


def look(settings: Settings) -> Iterator[Finding]:
    """Judge the file, and compare it with what is served."""
    file = settings.certificate
    read = ("openssl", "x509", "-in", file, "-noout")
    yield judge_life(life_of(file), time.time(), settings.certificate_mode, settings.playbook)
    # OpenSSL 3.0 ends with 0 whatever the name is, later ones with 1 if it does not fit.
    if "does match" not in run(*read, "-checkhost", settings.hostname, codes=(0, 1)):
        seen = f"{file} is not for the name {settings.hostname}"
        yield fail("certificate", seen, settings.playbook)
    yield from _served(settings, first_certificate(Path(file).read_text()))


def first_certificate(pem: str) -> bytes:
    """Return the first certificate (DER) of a PEM text, which may have a key before it."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    only = begin + pem.split(begin, 1)[1].split(end, 1)[0] + end
    return ssl.PEM_cert_to_DER_cert(only)


def _served(settings: Settings, expected: bytes) -> Iterator[Finding]:
    services = {25: "postfix"} | {PORTS[each]: "dovecot" for each in settings.protocols}
    for port, service in services.items():
        found = _certificate_on(port)
        if found is not None and found != expected:
            seen = f"port {port} serves another one than {settings.certificate}"
            yield fail("certificate", seen, f"systemctl reload {service}")


def _certificate_on(port: int) -> bytes | None:
    """Return the certificate that a port serves; None for STARTTLS of IMAP and POP3.

    None as well if the port does not answer, which the services' own checks report.
    """
    try:
        return _shown_certificate(port)
    except (OSError, smtplib.SMTPException):
        return None


def _shown_certificate(port: int) -> bytes | None:
    if port == 25:
        with smtplib.SMTP(LOCAL, port, timeout=ANSWER_SECONDS) as client:
            client.starttls(context=unverified())
            connection = client.sock
            assert isinstance(connection, ssl.SSLSocket)  # noqa: S101 - for the type
            return connection.getpeercert(binary_form=True)
    protocol = next(each for each in PORTS if PORTS[each] == port)
    with connect(protocol) as stream:
        return stream.getpeercert(binary_form=True) if isinstance(stream, ssl.SSLSocket) else None
