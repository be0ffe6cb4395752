"""Postfix's policy delegation protocol, and operators' requests in the same form. No I/O.

A request is lines of `name=value` and an empty line; so is a reply. Neither NUL nor newline can be
part of a value (Postfix SMTPD_POLICY_README, "Protocol description").
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

# Postfix sends about 1 kB. Its longest values (HELO, sender, recipient) are limited to 2,048 bytes
# by line_length_limit; this is four times what a request with such values has.
MAX_REQUEST_BYTES = 32768


class ProtocolError(Exception):
    """The peer violates the protocol; nothing that it sends afterwards can be parsed.

    The text names the violation and repeats nothing of what was sent.
    """


class RequestType(enum.Enum):
    """The type of a request, in its attribute `request`."""

    ACCESS = b"smtpd_access_policy"  # Postfix: is this recipient to be accepted?
    CHECK = b"mx_validator_check"  # an operator: what is the verdict on this domain?
    FORGET = b"mx_validator_forget"  # an operator: forget this domain
    STATUS = b"mx_validator_status"  # an operator: what is the status?


# The type, and the subject: a recipient, a domain, or nothing; then the recipient's transaction,
# empty if not given, and whether the transaction has recipients already. A plain tuple, because
# there is one for each recipient of each mail.
Request = tuple[RequestType, str, bytes, bool]

# The subject of an operator's request; other attributes are ignored, as the README demands.
_SUBJECTS = {
    RequestType.CHECK: b"\ndomain=",
    RequestType.FORGET: b"\ndomain=",
}
_ACCESS = RequestType.ACCESS
_NEWLINE = ord("\n")


class RequestParser:
    """Splits a stream of bytes into requests, in whatever pieces the stream arrives."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Add bytes that were read."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """Return the next complete request, or None if it has not arrived yet.

        Raises:
            ProtocolError: The next bytes are no request, or it is too large.
        """
        buffer = self._buffer
        if not buffer:
            return None
        end = buffer.find(b"\n\n", 0, MAX_REQUEST_BYTES)
        if end <= 0:
            _refuse_empty(buffer)
            if len(buffer) >= MAX_REQUEST_BYTES:
                raise ProtocolError(f"request of more than {MAX_REQUEST_BYTES} bytes")
            return None
        self._buffer = buffer[end + 2 :]
        # All releases of Postfix begin with this line.
        if buffer.startswith(b"request=smtpd_access_policy\n"):
            return _parse_access(buffer, end)
        _refuse_empty(buffer)
        return _parse_request(b"\n" + buffer[: end + 1])


def _parse_access(lines: bytes, end: int) -> Request:
    start = _find(lines, b"\nrecipient=", 0, end)
    if start < 0:
        raise ProtocolError("recipient missing")
    stop = lines.find(b"\n", start)
    # A recipient may be in any 8-bit encoding, or in none.
    recipient = lines[start:stop].decode("utf-8", "surrogateescape")
    instance = _find(lines, b"\ninstance=", stop, end)
    # There is a queue file as soon as the first recipient was accepted (SMTPD_POLICY_README).
    queue_id = _find(lines, b"\nqueue_id=", stop, end)
    return (
        _ACCESS,
        recipient,
        lines[instance : lines.find(b"\n", instance)] if instance >= 0 else b"",
        queue_id >= 0 and lines[queue_id] != _NEWLINE,
    )


def _find(lines: bytes, name: bytes, probably: int, end: int) -> int:
    """Return the offset of an attribute's value, or -1; the search begins at `probably`."""
    start = lines.find(name, probably, end)
    if start < 0 < probably:
        start = lines.find(name, 0, end)
    return start if start < 0 else start + len(name)


def _refuse_empty(buffer: bytes) -> None:
    if buffer.startswith(b"\n"):
        raise ProtocolError("empty request")


def _parse_request(lines: bytes) -> Request:
    """Parse the lines of a request, with a newline before each and after the last."""
    end = len(lines) - 1
    name = _value(lines, b"\nrequest=", end)
    try:
        kind = RequestType(name.encode())
    except ValueError as error:
        raise ProtocolError("request type unknown") from error
    if kind is _ACCESS:
        return _parse_access(lines, end)
    subject = _SUBJECTS.get(kind)
    return kind, _value(lines, subject, end) if subject else "", b"", False


def _value(lines: bytes, name: bytes, end: int) -> str:
    """Return the value of an attribute, the first one if it is given twice."""
    start = _find(lines, name, 0, end)
    if start < 0:
        raise ProtocolError(f"{name[1:-1].decode()} missing")
    return lines[start : lines.find(b"\n", start)].decode("utf-8", "surrogateescape")


def format_attributes(attributes: Mapping[str, str]) -> bytes:
    """Format a request or a reply; characters that no value may have become '?'."""
    lines = (f"{name}={_printable(value)}\n" for name, value in attributes.items())
    return "".join([*lines, "\n"]).encode("utf-8", "replace")


def _printable(value: str) -> str:
    return "".join("?" if char < " " or char == "\x7f" else char for char in value)


def parse_reply(data: bytes) -> dict[str, str]:
    """Parse a reply of the daemon, the inverse of `format_attributes`.

    Raises:
        ProtocolError: The data is no complete reply.
    """
    text = data.decode("utf-8", "replace")
    pairs = [line.partition("=") for line in text.removesuffix("\n\n").split("\n")]
    if not text.endswith("\n\n") or not all(separator for _, separator, _ in pairs):
        raise ProtocolError("no complete reply")
    return {name: value for name, _, value in pairs}
