"""Senders and recipients made at random, each with what the MX has to do with it.

Each kind of address states its own expectation, so that nothing here has to guess what the server
makes of a string. `stored` is the form in the mailbox (X-Original-To, Return-Path): Postfix keeps
an address without quotes, and quotes again what needs it (quote_822_local(), quote_821_local()).
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

ATEXT = string.ascii_letters + string.digits + "#$&'*+-/=?^_`{|}~"  # RFC 5321, without routing: ! %
ROUTING = "%!@"
QTEXT = "".join(chr(c) for c in range(32, 127) if chr(c) not in '"\\' + ROUTING)
PATH_OCTETS = 512  # twice what RFC 5321, 4.5.3.1.3, has room for: the longest sender taken
LOCAL_OCTETS = 64  # RFC 5321, 4.5.3.1.1
DOMAIN_OCTETS = 253  # without the last dot

OWN = (
    "fuzz.example",
    *(f"d{number}.fuzz.example" for number in range(6)),
    "xn--bcher-kva.fuzz.example",
    "xn--fsqu00a.xn--4rr70v",
    "0.1.2.fuzz.example",
    "a--b.fuzz.example",
    "l" * 63 + ".fuzz.example",
    (".".join(["long" * 12] * 5) + "." + "x" * 60)[: DOMAIN_OCTETS - 13] + ".fuzz.example",
)
OWN_UTF8 = ("bücher.fuzz.example", "例子.广告")  # what the first two A-labels stand for
FOREIGN = ("foreign.example", "not-fuzz.example", "sub.d0.fuzz.example", "d0.fuzz.example.com")
NO_DOMAIN = (
    *("localhost", "[192.0.2.1]", "[IPv6:2001:db8::1]", "192.0.2.1", "b..example", "-b.example"),
    *("b-.example", "x" * 64 + ".example", "x." * 130 + "example", ".example", "", "b c.example"),
    *("[127.0.0.1]", "b_c&x=1.example", "b/../c.example", "#1.example", "d0.fuzz.example@x"),
)

# The replies to RCPT and MAIL that refuse an address, as docs/operating.md lists them.
DENIED = "554 5.7.1 .*Relay access denied"
OWN_LITERAL = "554 5.7.1 .*Recipient address rejected: Access denied"
NO_MAILBOX = "550 5.1.1 "
NOT_QUALIFIED = "504 5.5.2 "
BAD_RECIPIENT = "501 5.1.3 "
BAD_SENDER = "501 5.1.7 "
BAD_COMMAND = "500 5.5.2 "
SYNTAX = "501 5.5.4 "
UNKNOWN_PARAMETER = "555 5.5.4 "

# Bytes that no address may have; the last three begin UTF-8 that does not go on.
BAD = (b"\x00", b"\x01", b"\x08", b"\x1b", b"\x7f", b"\xff", b"\xfc", b"\xc3")


@dataclass(frozen=True)
class Address:
    """One address of an envelope, and what may become of it."""

    kind: str  # for the count of what was tried
    wire: bytes  # as the command has it, brackets and all
    stored: bytes | None  # as the mailbox has it if it is taken; None: it never is
    refusals: tuple[str, ...] = ()  # replies that are right (patterns); none: it has to be taken
    utf8: bool = False  # has to be declared by SMTPUTF8

    @property
    def twin(self) -> bytes:
        """What two recipients that differ in case only have in common."""
        return (self.stored or b"").lower()

    @property
    def identity(self) -> bytes:
        """What makes two recipients one."""
        return identity(self.stored or b"")


def identity(stored: bytes) -> bytes:
    """What two spellings of a recipient have in common.

    Case counts in the local part only (RFC 5321, 2.4), but not in postmaster's (4.5.1) and abuse's
    (RFC 2142).
    """
    local, at, domain = stored.rpartition(b"@")
    if local.lower() in {b"postmaster", b"abuse"}:
        local = local.lower()
    return local + at + domain.lower()


def quoted(local: str) -> str:
    """Return a local part in quotes, with backslashes where they have to be."""
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


def externalised(local: str) -> str:
    """Return a local part as the server writes it: in quotes only if it is no dot-string."""
    special = set(' ()<>@,;:\\"[]')
    plain = bool(local) and not (special & set(local)) and ".." not in local
    plain = plain and not local.startswith(".") and not local.endswith(".")
    plain = plain and not any(c < " " or c == "\x7f" for c in local)
    return local if plain else quoted(local)


class Addresses:
    """Makes addresses; all of it follows from the generator it is given."""

    def __init__(self, generator: random.Random, hostname: str) -> None:
        self._random = generator
        self._hostname = hostname

    # -- parts ----------------------------------------------------------------

    def _text(self, alphabet: str, low: int, high: int) -> str:
        return "".join(self._random.choices(alphabet, k=self._random.randint(low, high)))

    def _atoms(self) -> str:
        """A dot-string of at most 64 bytes; the most usual are VERP tokens."""
        form = self._random.randrange(8)
        if form == 0:
            local = ".".join(self._text(ATEXT, 1, 9) for _ in range(self._random.randint(1, 6)))
        elif form == 1:
            local = self._text(ATEXT, LOCAL_OCTETS, LOCAL_OCTETS)
        elif form == 2:
            local = self._text(ATEXT, 1, 1)
        elif form == 3:
            local = "-" + self._text(ATEXT, 0, 9)
        else:
            token = self._text(string.ascii_letters + string.digits, 1, 30)
            local = f"Bounce+{token}=joe=isp.example"
        return local[:LOCAL_OCTETS].strip(".")

    def _own(self) -> str:
        """A domain of the platform, in any case."""
        domain = self._random.choice(OWN)
        form = self._random.randrange(6)
        if form == 0:
            return domain.upper()
        if form == 1:
            return "".join(self._random.choice((c.lower(), c.upper())) for c in domain)
        return domain

    # -- recipients -----------------------------------------------------------

    def recipient(self) -> Address:
        """Any recipient; nearly all are the platform's own."""
        kinds = (
            (self._plain, 50),
            (self._quoted, 12),
            (self._needless_quotes, 3),
            (self._trailing_dot, 3),
            (self._host, 4),
            (self._long_local, 2),
            (self._odd_dots, 2),
            (self._loose, 4),
            (self._utf8, 5),
            (self._foreign, 6),
            (self._routing, 4),
            (self._no_domain, 4),
            (self._bad_bytes, 3),
            (self._malformed, 3),
        )
        makers, weights = zip(*kinds, strict=True)
        made: Address = self._random.choices(makers, weights)[0]()
        return made

    def case_twin(self, of: Address) -> Address | None:
        """Return a recipient whose local part differs from another's in case only."""
        local, at, domain = of.wire.rpartition(b"@")
        if of.refusals or of.kind not in {"plain", "quoted"} or local.swapcase() == local:
            return None
        stored_local, _, stored_domain = (of.stored or b"").rpartition(b"@")
        stored = stored_local.swapcase() + at + stored_domain
        return Address("case twin", local.swapcase() + at + domain, stored)

    def _plain(self) -> Address:
        address = f"{self._atoms()}@{self._own()}".encode()
        kind = "leading hyphen" if address.startswith(b"-") else "plain"
        return Address(kind, b"<" + address + b">", address)

    def _quoted(self) -> Address:
        """A quoted string with quoted pairs, some of which have no need to be."""
        domain = self._own()
        local = self._text(QTEXT + '"\\', 0, self._random.choice((1, 5, 30)))
        written = ""
        for character in local:
            pair = character in '"\\' or self._random.random() < 0.1
            written += "\\" + character if pair else character
        stored = f"{externalised(local)}@{domain}".encode()
        return Address("quoted", f'<"{written}"@{domain}>'.encode(), stored)

    def _needless_quotes(self) -> Address:
        address = f"{self._atoms()}@{self._own()}"
        local, _, domain = address.rpartition("@")
        return Address("needless quotes", f'<"{local}"@{domain}>'.encode(), address.encode())

    def _trailing_dot(self) -> Address:
        address = f"{self._atoms()}@{self._own()}.".encode()
        return Address("trailing dot", b"<" + address + b">", address)

    def _host(self) -> Address:
        """Those at the host's own name: postmaster and abuse, in any case, and nobody else."""
        local = self._random.choice(
            ("postmaster", "abuse", "Postmaster", "ABUSE", "root", "double-bounce")
        )
        address = f"{local}@{self._hostname}".encode()
        if local.lower() in {"postmaster", "abuse"}:
            if self._random.random() < 0.2:
                return Address("postmaster", b"<postmaster>", b"postmaster")  # RFC 5321, 4.5.1
            return Address("postmaster", b"<" + address + b">", address)
        return Address("host's other", b"<" + address + b">", None, (NO_MAILBOX,))

    def _long_local(self) -> Address:
        """More than a server has to take; a line may have 512 bytes, ours take 2,048."""
        address = f"{self._text(ATEXT, 65, self._random.choice((99, 900)))}@{self._own()}".encode()
        return Address("long local part", b"<" + address + b">", address, (BAD_RECIPIENT,))

    def _odd_dots(self) -> Address:
        """No dot-string by RFC 5321, but many have such a mailbox."""
        domain = self._own()
        local = self._random.choice((".a", "a.", "a..b", "...", "."))
        stored = f"{externalised(local)}@{domain}".encode()
        return Address("odd dots", f"<{local}@{domain}>".encode(), stored, (BAD_RECIPIENT,))

    def _loose(self) -> Address:
        """Forms that Postfix forgives (strict_rfc821_envelopes is off)."""
        local, domain = self._text(string.ascii_letters, 1, 9), self._own()
        address = f"{local}@{domain}"
        refusals = (BAD_RECIPIENT, UNKNOWN_PARAMETER)
        wire = self._random.choice(
            (
                address,
                f" <{address}>",
                f"<{address} >",
                f"<{local}(comment)@{domain}>",
                f"<@relay.example:{address}>",
                f"<@relay.example,@[192.0.2.1]:{address}>",
                f"<{local} @ {domain}>",
                f"<{local}\r@\t{domain}>",
                f"Joe <{address}>",
            )
        )
        return Address("loose", wire.encode(), address.encode(), refusals)

    def _utf8(self) -> Address:
        """An address outside ASCII (RFC 6531)."""
        local = self._text("用户äößéЖ😀" + string.ascii_letters, 0, 9) + "ü"
        domain = self._random.choice((*OWN_UTF8, self._own()))
        address = f"{local}@{domain}".encode()
        return Address("utf-8", b"<" + address + b">", address, utf8=True)

    def _foreign(self) -> Address:
        local = self._random.choice((self._atoms(), "postmaster", "double-bounce"))
        address = f"{local}@{self._random.choice(FOREIGN)}".encode()
        return Address("foreign", b"<" + address + b">", None, (DENIED,))

    def _routing(self) -> Address:
        """Local parts that ask to send the mail on; RFC 5321 has % and ! in its atoms."""
        foreign, own = self._random.choice(FOREIGN), self._own()
        local = self._random.choice(
            (
                f"u%{foreign}",
                f"{foreign}!u",
                f'"u@{foreign}"',
                f'"u%{foreign}"',
                f'"u\\@{foreign}"',
                f"u@{foreign}",
                "%",
                "!",
                "u!",
                "%u",
            )
        )
        kind = "routing"
        refusals = (DENIED, BAD_RECIPIENT)
        return Address(kind, f"<{local}@{own}>".encode(), None, refusals)

    def _no_domain(self) -> Address:
        local, domain = self._text(string.ascii_letters, 1, 9), self._random.choice(NO_DOMAIN)
        wire = f"<{local}@{domain}>" if self._random.random() < 0.9 else f"<{local}>"
        refusals = (DENIED, OWN_LITERAL, BAD_RECIPIENT, NOT_QUALIFIED, UNKNOWN_PARAMETER)
        return Address("no domain", wire.encode(), None, refusals)

    def _bad_bytes(self) -> Address:
        """Control characters, DEL and bytes that are not UTF-8, in the local part or the domain.

        No address may have them. If the server forgives them in a local part, they have to arrive.
        """
        bad = self._random.choice(BAD)
        local, domain = self._text(string.ascii_letters, 1, 9).encode(), self._own().encode()
        refusals = (BAD_COMMAND, BAD_RECIPIENT)
        if bad == b"\x00" or self._random.random() < 0.3:
            wire = b"<%b@%b%b>" % (local, bad, domain)
            return Address("bad bytes", wire, None, (*refusals, DENIED, NOT_QUALIFIED))
        address = (b"%b%b@%b" if bad >= b"\x80" else b'"%b%b"@%b') % (local, bad, domain)
        wire = self._random.choice((b"<%b%b@%b>", b'<"%b%b"@%b>')) % (local, bad, domain)
        return Address("bad bytes", wire, address, refusals)

    def _malformed(self) -> Address:
        local, domain = self._text(string.ascii_letters, 1, 9), self._own()
        wire = self._random.choice(
            (
                f"<{local}@{domain}",
                f'<"{local}@{domain}>',
                f"<{local}@{domain}> junk",
                f"<{local}@{domain},x@{domain}>",
                "<>",
                "",
                "<@>",
                f"<{'a' * 2100}@{domain}>",
            )
        )
        refusals = (BAD_RECIPIENT, SYNTAX, UNKNOWN_PARAMETER, NOT_QUALIFIED, DENIED)
        return Address("malformed", wire.encode(), None, refusals)

    # -- senders --------------------------------------------------------------

    def sender(self) -> Address:
        """Any sender, above all the null sender."""
        kinds = (
            (self._null_sender, 35),
            (self._plain_sender, 30),
            (self._quoted_sender, 10),
            (self._routing_sender, 5),
            (self._utf8_sender, 5),
            (self._literal_sender, 5),
            (self._bad_byte_sender, 5),
            (self._long_sender, 3),
            (self._malformed_sender, 5),
        )
        makers, weights = zip(*kinds, strict=True)
        domain = self._random.choice(("isp.example", "Sub.ISP.example", "no-such-tld", *OWN[:3]))
        made: Address = self._random.choices(makers, weights)[0](domain)
        return made

    def _null_sender(self, _: str) -> Address:
        return Address("null sender", b"<>", b"")

    def _plain_sender(self, domain: str) -> Address:
        address = f"{self._atoms()}@{domain}".encode()
        return Address("sender", b"<" + address + b">", address)

    def _quoted_sender(self, domain: str) -> Address:
        local = self._text(QTEXT + '"\\', 1, 20)
        stored = f"{externalised(local)}@{domain}".encode()
        return Address("quoted sender", f"<{quoted(local)}@{domain}>".encode(), stored)

    def _routing_sender(self, domain: str) -> Address:
        local = self._random.choice((f"u%{domain}", f"{domain}!u", "SRS0=x=tt=isp.example=u"))
        address = f"{local}@{domain}".encode()
        return Address("routing sender", b"<" + address + b">", address)

    def _utf8_sender(self, domain: str) -> Address:
        if self._random.random() < 0.5:
            address = f"{self._atoms()}@bücher.isp.example".encode()
        else:
            address = f"{self._text('äöü用户', 1, 9)}@{domain}".encode()
        return Address("utf-8 sender", b"<" + address + b">", address, utf8=True)

    def _literal_sender(self, _: str) -> Address:
        address = f"u@{self._random.choice(('[192.0.2.7]', '[IPv6:2001:db8::7]'))}".encode()
        return Address("literal sender", b"<" + address + b">", address)

    def _long_sender(self, domain: str) -> Address:
        """Longer than RFC 5321 has room for: up to 512 bytes are taken all the same."""
        size = self._random.choice((100, 400, 600, 1500))
        address = f"{self._text(ATEXT, size, size)}@{domain}".encode()
        refused = len(address) > PATH_OCTETS
        refusals = (BAD_SENDER,) if refused else ()
        return Address("long sender", b"<" + address + b">", None if refused else address, refusals)

    def _bad_byte_sender(self, domain: str) -> Address:
        wire = b"<j" + self._random.choice(BAD) + b"rgen@" + domain.encode() + b">"
        return Address("bad sender", wire, None, (BAD_COMMAND, BAD_SENDER))

    def _malformed_sender(self, domain: str) -> Address:
        wires = (f"<a@{domain}", f'<"a@{domain}>', f"<a@{domain}> <b@{domain}>")
        refusals = (BAD_SENDER, SYNTAX, UNKNOWN_PARAMETER)
        return Address("bad sender", self._random.choice(wires).encode(), None, refusals)
