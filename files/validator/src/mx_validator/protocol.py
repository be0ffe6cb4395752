"""Postfix's policy delegation protocol, and our own request type in the same dress. No I/O.

A request is lines of `name=value` and an empty line; so is a reply. Neither NUL nor newline can be
part of a value (Postfix SMTPD_POLICY_README, "Protocol description").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Postfix sends about 1 kB. Its longest values (HELO, sender, recipient) end at line_length_limit,
# 2,048 bytes, so that the limits below leave room for four times as much in every direction.
MAX_LINE_BYTES = 8192
MAX_REQUEST_BYTES = 32768
MAX_REQUEST_LINES = 200  # Postfix 3.10 sends 30

_ACCESS = b"smtpd_access_policy"
_CHECK = b"mx_validator_check"
_END = b"\n\n"
# All other attributes are skipped, as the README demands.
_NAMES_READ = frozenset({b"request", b"recipient", b"domain"})


class ProtocolError(Exception):
    """The peer does not speak the protocol; nothing it sends from here on can be trusted.

    The text names the mistake and repeats nothing of what was sent.
    """


class AccessRequest(NamedTuple):
    """Postfix asks whether it may take mail for a recipient (`request=smtpd_access_policy`)."""

    recipient: str


class CheckRequest(NamedTuple):
    """An operator asks about a domain (`request=mx_validator_check`)."""

    domain: str


Request = AccessRequest | CheckRequest


class RequestParser:
    """Cuts a stream of bytes into requests, however the stream was split on its way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._buffer += data

    def take(self) -> Request | None:
        """Return the next complete request, or None if there is none yet.

        Raises:
            ProtocolError: What comes next is no request, or too large for one.
        """
        if self._buffer.startswith(b"\n"):
            raise ProtocolError("empty request")
        end = self._buffer.find(_END, 0, MAX_REQUEST_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_REQUEST_BYTES:
                raise ProtocolError(f"request of more than {MAX_REQUEST_BYTES} bytes")
            return None
        request = bytes(self._buffer[:end])
        del self._buffer[: end + len(_END)]
        return _request(_attributes(request))


def _attributes(request: bytes) -> dict[bytes, bytes]:
    lines = request.split(b"\n")
    if len(lines) > MAX_REQUEST_LINES:
        raise ProtocolError(f"request of more than {MAX_REQUEST_LINES} lines")
    if len(request) > MAX_LINE_BYTES and max(map(len, lines)) > MAX_LINE_BYTES:
        raise ProtocolError(f"line of more than {MAX_LINE_BYTES} bytes")
    if b"\0" in request:
        raise ProtocolError("NUL in a line")
    found: dict[bytes, bytes] = {}
    for line in lines:
        name, separator, value = line.partition(b"=")
        if not separator:
            raise ProtocolError("line without '='")
        if name in _NAMES_READ:
            # The README lets a server keep either; but two recipients leave a doubt.
            if name in found:
                raise ProtocolError(f"{name.decode()} given twice")
            found[name] = value
    return found


def _request(attributes: dict[bytes, bytes]) -> Request:
    kind = attributes.get(b"request")
    if kind == _ACCESS:
        return AccessRequest(_text(attributes, b"recipient"))
    if kind == _CHECK:
        return CheckRequest(_text(attributes, b"domain"))
    raise ProtocolError("request type missing or unknown")


def _text(attributes: dict[bytes, bytes], name: bytes) -> str:
    value = attributes.get(name)
    if value is None:
        raise ProtocolError(f"{name.decode()} missing")
    # A recipient may be in any 8-bit encoding, or in none.
    return value.decode("utf-8", "surrogateescape")


def format_attributes(attributes: Mapping[str, str]) -> bytes:
    """Write attributes as a request or a reply; what no value may hold becomes '?'."""
    lines = (f"{name}={_printable(value)}\n" for name, value in attributes.items())
    return "".join([*lines, "\n"]).encode("utf-8", "replace")


def _printable(value: str) -> str:
    return "".join("?" if char < " " or char == "\x7f" else char for char in value)


def parse_reply(data: bytes) -> dict[str, str]:
    """Read a complete reply of ours: the other end of `format_attributes`.

    Raises:
        ProtocolError: It is no complete reply.
    """
    text = data.decode("utf-8", "replace")
    pairs = [line.partition("=") for line in text.removesuffix("\n\n").split("\n")]
    if not text.endswith("\n\n") or not all(separator for _, separator, _ in pairs):
        raise ProtocolError("no complete reply")
    return {name: value for name, _, value in pairs}
