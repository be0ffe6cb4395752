"""The DNS records of an MX host itself."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterator

import dns.rdtypes.ANY.TLSA
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from oempro_mx.model import Finding, State, fail, ok, warn
from oempro_mx_check.names import Names
from oempro_mx_check.settings import Host

PUBLISH = "publish: "
# RFC 6698 2.1: what a TLSA record matches.
_ENTITY = (1, 3)  # certificate usages that name the server's own certificate or key
_PARTS = {0: "certificate", 1: "key"}
_DIGESTS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha512(data).digest(),
}


def look_at_addresses(host: Host, names: Names) -> Iterator[Finding]:
    """Judge the A and AAAA records: there are some, and the name is no alias."""
    # An MX record must not name an alias (RFC 2181 10.3).
    canonical = names.look_up(host.hostname, "A").canonical
    published = names.addresses(host.hostname)
    wanted = "\n".join(
        f"{PUBLISH}{host.hostname}. {_kind(address)} {address}" for address in host.own_addresses
    )
    if not published:
        yield fail("address", f"{host.hostname} has no A or AAAA record", wanted)
    elif canonical != host.hostname:
        seen = f"{host.hostname} is an alias (CNAME) of {canonical}, which no MX record may name"
        yield fail("address", seen, wanted)
    else:
        yield ok("address", f"{host.hostname} is {', '.join(published)}")


def look_at_reverse(host: Host, address: str, names: Names) -> Iterator[Finding]:
    """Judge an address's PTR record: one of its names has this address again."""
    record, pointed = names.reverse(address)
    confirmed = [each for each in pointed if address in names.addresses(each)]
    wanted = f"{PUBLISH}{record} PTR {host.hostname}."
    if confirmed:
        yield ok("PTR", f"{address} is {confirmed[0]}, and that is {address}")
    elif pointed:
        yield warn("PTR", f"{address} is {', '.join(pointed)}, which is not {address}", wanted)
    else:
        yield warn("PTR", f"{address} has no PTR record", wanted)


def look_at_spf(host: Host, names: Names) -> Iterator[Finding]:
    """Judge what is published about who may send by the host's name: nobody may."""
    published = names.strings(host.hostname)
    policies = [text for text in published if text.lower().split(" ")[0] == "v=spf1"]
    wanted = f'{PUBLISH}{host.hostname}. TXT "v=spf1 -all"'
    if len(policies) > 1:
        yield warn("SPF", f"{host.hostname} has more than one, which makes them void", wanted)
    elif policies and policies[0].split() != ["v=spf1", "-all"]:
        seen = f"this host never sends, but {host.hostname} lets others: {policies[0]}"
        yield warn("SPF", seen, wanted)
    elif policies:
        yield ok("SPF", f"nobody may send as {host.hostname}")


def look_at_tlsa(host: Host, certificate: bytes, names: Names) -> Iterator[Finding]:
    """Compare the TLSA records with the certificate that is served, if there are any.

    Senders that honour DANE (RFC 7672) hold mail back if none matches.
    """
    name = f"_25._tcp.{host.hostname}"
    values = [
        value
        for value in names.look_up(name, "TLSA").values
        if isinstance(value, dns.rdtypes.ANY.TLSA.TLSA)
    ]
    if not values:
        return
    key = tlsa_of_key(certificate)
    if any(_matches(value, certificate) for value in values):
        yield ok("TLSA", f"{name} is the {_part_of(values, certificate)} in use")
    elif all(value.usage not in _ENTITY for value in values):
        seen = f"{name} names a CA, which this check does not follow"
        data = values[0].to_text()
        command = f"openssl s_client -starttls smtp -connect {host.hostname}:25"
        remedy = f"{command} -dane_tlsa_domain {host.hostname} -dane_tlsa_rrdata '{data}'"
        yield Finding("TLSA", State.COULD_NOT_LOOK, seen, remedy)
    else:
        seen = f"{name} is another key than the one in use: senders that honour DANE do not deliver"
        yield fail("TLSA", seen, f"{PUBLISH}{name}. TLSA {key}")


def tlsa_of_key(certificate: bytes) -> str:
    """Return the data of a TLSA record for the key of a certificate (DER)."""
    return f"3 1 1 {hashlib.sha256(_part(1, certificate)).hexdigest()}"


def _part(selector: int, certificate: bytes) -> bytes:
    if selector == 0:
        return certificate
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _matches(value: dns.rdtypes.ANY.TLSA.TLSA, certificate: bytes) -> bool:
    digest = _DIGESTS.get(value.mtype)
    if value.usage not in _ENTITY or value.selector not in _PARTS or digest is None:
        return False
    return digest(_part(value.selector, certificate)) == bytes(value.cert)


def _part_of(values: list[dns.rdtypes.ANY.TLSA.TLSA], certificate: bytes) -> str:
    return _PARTS[next(value.selector for value in values if _matches(value, certificate))]


def _kind(address: str) -> str:
    return "AAAA" if ipaddress.ip_address(address).version == 6 else "A"
