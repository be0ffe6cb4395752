"""The domain of a recipient address, in the normal form that is looked up and cached."""

from __future__ import annotations

import re

import idna

MAX_DOMAIN_CHARACTERS = 253  # RFC 1035 2.3.4: 255 octets on the wire are 253 in writing

# Letters, digits and hyphens (RFC 1123 2.1), 63 a label. Host names have no underscore, but some
# platforms own such domains, and the platform decides.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# At least two labels; a last label of digits alone is the end of an IP address (RFC 3696 2).
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+(?![0-9]+\Z){_LABEL}")


class MalformedDomainError(ValueError):
    """The address has no valid domain. The text repeats nothing of the address."""


def recipient_domain(recipient: str) -> str:
    """Return the normal form of the domain of a recipient address.

    The domain begins after the last '@' (RFC 5321 4.1.2: those before it are within quotes).

    Raises:
        MalformedDomainError: There is no domain, or it is not valid.
    """
    _, separator, domain = recipient.rpartition("@")
    if not separator:
        raise MalformedDomainError("address without a domain")
    return normalise(domain)


def normalise(domain: str) -> str:
    """Return a domain in lower case, without its final dot, internationalised labels as A-labels.

    Raises:
        MalformedDomainError: It is an address literal or not a domain name.
    """
    if domain.startswith("["):
        raise MalformedDomainError("address literal")
    # One more for the final dot. This check comes first: IDNA is slow with very long names.
    if len(domain) > MAX_DOMAIN_CHARACTERS + 1:
        raise MalformedDomainError("domain too long")
    name = (domain.lower() if domain.isascii() else _to_ascii(domain)).removesuffix(".")
    if len(name) > MAX_DOMAIN_CHARACTERS:
        raise MalformedDomainError("domain too long")
    if not _DOMAIN.fullmatch(name):
        raise MalformedDomainError("not a domain name")
    return name


def _to_ascii(domain: str) -> str:
    try:
        # UTS 46 folds case, widths and the ideographic full stop.
        labels = idna.uts46_remap(domain, std3_rules=False).split(".")
        # Label by label, since IDNA would refuse the underscore of an ASCII one.
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels
        )
    except UnicodeError as error:  # the base of IDNAError, and the error of lone surrogates
        raise MalformedDomainError("not an internationalised domain name") from error
