"""TLS with a host at an address, and whether its certificate is what the settings promise."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from oempro_mx.checks.certificate import first_certificate
from oempro_mx_check.settings import Host

# What a certificate's mode lets senders and the platform verify.
VERIFIABLE = ("provided", "acme")


class NamedContext(ssl.SSLContext):
    """Verifies a name, whatever address the connection is to."""

    server: str

    def wrap_socket(self, *args: object, **kwargs: object) -> ssl.SSLSocket:
        """Wrap a socket, with the name in place of the address that a client has passed."""
        kwargs["server_hostname"] = self.server
        return super().wrap_socket(*args, **kwargs)  # type: ignore[arg-type]


def context(hostname: str, verify: bool) -> NamedContext:
    """Return a context that verifies name and chain by this machine's CAs, or nothing."""
    made = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    made.server = hostname
    made.check_hostname = verify
    made.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    made.load_default_certs()
    return made


@dataclass(frozen=True)
class Served:
    """What a port has served."""

    certificate: bytes  # DER
    problem: str  # why it is not what the settings promise; empty if it is


def context_for(host: Host) -> NamedContext:
    """Return a context that verifies as much as the mode of the host's certificate promises."""
    return context(host.hostname, verify=host.certificate_mode in VERIFIABLE)


def served(host: Host, connection: object) -> Served:
    """Compare the certificate of a connection with the host's file."""
    if not isinstance(connection, ssl.SSLSocket):
        raise TypeError("the connection has no TLS")
    certificate = connection.getpeercert(binary_form=True) or b""
    if host.certificate and first_certificate(host.certificate) != certificate:
        return Served(certificate, "serves another certificate than the host's file has")
    return Served(certificate, "")
