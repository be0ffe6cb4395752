"""DNS, in which "there is none" and "nobody answered" are different answers."""

from __future__ import annotations

from dataclasses import dataclass

import dns.exception
import dns.name
import dns.rdata
import dns.rdtypes.ANY.TXT
import dns.resolver
import dns.reversename

from oempro_mx.model import CouldNotLookError

LOOKUP_SECONDS = 10.0  # for all servers and tries together


@dataclass(frozen=True)
class Records:
    """The records of one type that a name has, perhaps none."""

    canonical: str  # the name at the end of the CNAMEs, without the last dot
    values: tuple[dns.rdata.Rdata, ...]

    def texts(self) -> list[str]:
        """Return the records as they are written in a zone file; names without the last dot."""
        return [value.to_text().removesuffix(".").lower() for value in self.values]


class Names:
    """A resolver. It may be used by several threads."""

    def __init__(self, resolvers: list[str]) -> None:
        """Use these servers, or those of this machine.

        Raises:
            dns.resolver.NoResolverConfiguration: this machine has none.
        """
        self._resolver = dns.resolver.Resolver(configure=not resolvers)
        if resolvers:
            self._resolver.nameservers = list(resolvers)
        self._resolver.lifetime = LOOKUP_SECONDS
        # Thousands of domains name the same few hosts.
        self._resolver.cache = dns.resolver.LRUCache()

    def look_up(self, name: str, kind: str) -> Records:
        """Return the records of a type, following CNAMEs.

        Raises:
            CouldNotLookError: no server has answered whether there are any.
        """
        absolute = dns.name.from_text(name)
        try:
            answer = self._resolver.resolve(absolute, kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN as error:
            return Records(_text(error.canonical_name), ())
        except dns.exception.DNSException as error:
            raise CouldNotLookError(f"DNS: {error}", f"dig {name} {kind}") from error
        values = () if answer.rrset is None else tuple(answer.rrset)
        return Records(_text(answer.canonical_name), values)

    def addresses(self, name: str) -> list[str]:
        """Return the IPv4 and then the IPv6 addresses of a name. Raises like `look_up`."""
        return [text for kind in ("A", "AAAA") for text in self.look_up(name, kind).texts()]

    def strings(self, name: str) -> list[str]:
        """Return the TXT records of a name, each as one string. Raises like `look_up`."""
        return [
            b"".join(value.strings).decode(errors="replace")
            for value in self.look_up(name, "TXT").values
            if isinstance(value, dns.rdtypes.ANY.TXT.TXT)
        ]

    def reverse(self, address: str) -> tuple[str, list[str]]:
        """Return the name of an address's PTR record, and what it says. Raises like `look_up`."""
        name = dns.reversename.from_address(address).to_text()
        return name, self.look_up(name, "PTR").texts()


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
