#!/usr/bin/python3
"""Tell Postfix how to write a sender outside ASCII in ASCII: Dovecot's LMTP does not know such.

If only the domain is outside ASCII, it becomes A-labels (RFC 5890), which mean the same:
joe@exämple.org is joe@xn--exmple-cua.org. Else there is no such form, and the whole address becomes
the local part, quoted-printable (RFC 2045 6.7), of one at a domain that nobody can have (RFC 2606):
jörg@example.org is j=C3=B6rg=40example.org@smtputf8.invalid.

Postfix starts this when it meets such a sender, and speaks the protocol of socketmap_table(5) on
standard input and output: netstrings of "NAME ADDRESS" and of "OK ADDRESS". What is none ends it,
and whoever sends the mail is told to try again later.
"""

import string
import sys
from typing import BinaryIO

import idna

ENCODED_DOMAIN = b"smtputf8.invalid"
# What stands for itself: none of these needs quotes in a local part, and "=" begins what does not.
LITERAL = frozenset(f"{string.ascii_letters}{string.digits}.-_+".encode())


def ascii_form(address: bytes) -> bytes:
    """Return the form in ASCII of an address."""
    local, _, domain = address.rpartition(b"@")
    if local.isascii():
        try:
            return local + b"@" + idna.encode(domain.decode(), uts46=True)
        except UnicodeError:  # what IDNAError is, too: a domain that nobody can have either
            pass
    encoded = (b"%c" % byte if byte in LITERAL else b"=%02X" % byte for byte in address)
    return b"".join(encoded) + b"@" + ENCODED_DOMAIN


def read_netstring(stream: BinaryIO) -> bytes | None:
    """Return the next netstring's content, or None at the end.

    Raises:
        ValueError: It is no netstring.
    """
    size = b""
    while (byte := stream.read(1)) != b":":
        if not byte:
            return None
        size += byte
    content = stream.read(int(size))
    if stream.read(1) != b",":
        raise ValueError("a netstring without an end")
    return content


def main() -> None:
    """Answer until Postfix has no more questions."""
    while (request := read_netstring(sys.stdin.buffer)) is not None:
        _, _, address = request.partition(b" ")
        reply = b"OK " + ascii_form(address)
        sys.stdout.buffer.write(b"%d:%s," % (len(reply), reply))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
