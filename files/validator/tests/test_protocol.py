from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import request_for
from mx_validator.protocol import (
    MAX_REQUEST_BYTES,
    ProtocolError,
    Request,
    RequestParser,
    RequestType,
    format_attributes,
    parse_reply,
)


def access(recipient: str, instance: bytes = b"", begun: bool = False) -> Request:
    return RequestType.ACCESS, recipient, instance, begun


def ask_about(recipient: str) -> Request:
    """Return the request parsed from request_for()."""
    return access(recipient, b"1a2b.5f3c.0")


def operator(kind: RequestType, domain: str = "") -> Request:
    return kind, domain, b"", False


ASK = b"request=smtpd_access_policy\n"
READ_SIZES = (1, 2, 3, 7, 16, 128, 4096, 1_000_000)


def parse(pieces: Iterable[bytes]) -> list[Request | str]:
    """All requests in a stream, and the text of the error that ended it."""
    parser = RequestParser()
    found: list[Request | str] = []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (request := parser.next_request()) is not None:
                found.append(request)
    except ProtocolError as error:
        found.append(str(error))
    return found


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def sized(total: int) -> bytes:
    """A request of `total` bytes."""
    request = ASK + b"recipient=a@b.example\n"
    lines, rest = divmod(total - len(request) - len(b"x=\n\n"), 1000)
    return request + (b"x=" + b"y" * 997 + b"\n") * lines + b"x=" + b"y" * rest + b"\n\n"


TABLE: dict[str, tuple[bytes, list[Request | str]]] = {
    "postfix": (request_for("b+1@x.example"), [ask_about("b+1@x.example")]),
    "pipelined": (
        request_for("a@x.example") + request_for("b@y.example"),
        [ask_about("a@x.example"), ask_about("b@y.example")],
    ),
    "incomplete": (request_for("a@x.example")[:-1], []),
    "nothing": (b"", []),
    "recipient first": (b"recipient=a@x.example\n" + ASK + b"\n", [access("a@x.example")]),
    "empty recipient": (ASK + b"recipient=\n\n", [access("")]),
    "equals sign in value": (ASK + b"recipient=b+a=b@x\n\n", [access("b+a=b@x")]),
    "8-bit": (ASK + b"recipient=\xff@x.example\n\n", [access("\udcff@x.example")]),
    "utf-8": (ASK + "recipient=ü@x.example\n\n".encode(), [access("ü@x.example")]),
    "carriage return": (ASK + b"recipient=a@x\r\n\n", [access("a@x\r")]),
    "unknown attribute twice": (ASK + b"x=1\nx=2\nrecipient=a\n\n", [access("a")]),
    "empty name": (ASK + b"=1\nrecipient=a\n\n", [access("a")]),
    "transaction that begins": (
        ASK + b"recipient=a\nqueue_id=\ninstance=1.2\n\n",
        [access("a", b"1.2")],
    ),
    "transaction with recipients": (
        ASK + b"recipient=a\nqueue_id=4bX\ninstance=1.2\n\n",
        [access("a", b"1.2", begun=True)],
    ),
    "transaction before the recipient": (
        b"instance=1.2\nqueue_id=4bX\nrecipient=a\n" + ASK + b"\n",
        [access("a", b"1.2", begun=True)],
    ),
    "empty instance": (ASK + b"recipient=a\ninstance=\n\n", [access("a")]),
    "transaction in the next request": (
        ASK + b"recipient=a\n\n" + ASK + b"recipient=b\nqueue_id=4bX\ninstance=1.2\n\n",
        [access("a"), access("b", b"1.2", begun=True)],
    ),
    "check": (
        b"request=mx_validator_check\ndomain=x.example\n\n",
        [operator(RequestType.CHECK, "x.example")],
    ),
    "empty request": (b"\n", ["empty request"]),
    "three newlines": (
        request_for("a@x.example") + b"\n",
        [ask_about("a@x.example"), "empty request"],
    ),
    "good before bad": (
        request_for("a@x.example") + b"GET / HTTP/1.1\r\n\n",
        [ask_about("a@x.example"), "request missing"],
    ),
    "line without an equals sign": (ASK + b"x\nrecipient=a\n\n", [access("a")]),
    "no equals sign": (ASK + b"recipient\n\n", ["recipient missing"]),
    "nul": (ASK + b"recipient=a\0b@x.example\n\n", [access("a\0b@x.example")]),
    "name within a line": (ASK + b"x=recipient=b\nrecipient=a\n\n", [access("a")]),
    "name in the next request": (
        ASK + b"\n" + request_for("a@x.example"),
        ["recipient missing"],
    ),
    "recipient twice": (ASK + b"recipient=a\nrecipient=b\n\n", [access("a")]),
    "request twice": (
        ASK + b"request=mx_validator_status\nrecipient=a\n\n",
        [access("a")],
    ),
    "no recipient": (ASK + b"sender=a@x.example\n\n", ["recipient missing"]),
    "check without a domain": (b"request=mx_validator_check\n\n", ["domain missing"]),
    "no request": (b"recipient=a@x.example\n\n", ["request missing"]),
    "other request": (
        b"request=junk\nrecipient=a@x.example\n\n",
        ["request type unknown"],
    ),
    "name in capitals": (
        b"REQUEST=smtpd_access_policy\nrecipient=a\n\n",
        ["request missing"],
    ),
    "forget": (
        b"request=mx_validator_forget\ndomain=x.example\n\n",
        [operator(RequestType.FORGET, "x.example")],
    ),
    "status": (b"request=mx_validator_status\n\n", [operator(RequestType.STATUS)]),
    "newline first": (b"\n" + request_for("a@x.example"), ["empty request"]),
    "largest": (sized(MAX_REQUEST_BYTES), [access("a@b.example")]),
    "too large": (
        sized(MAX_REQUEST_BYTES + 1),
        [f"request of more than {MAX_REQUEST_BYTES} bytes"],
    ),
    "endless": (
        b"x" * (MAX_REQUEST_BYTES + 1000),
        [f"request of more than {MAX_REQUEST_BYTES} bytes"],
    ),
}


@pytest.mark.parametrize("size", READ_SIZES)
@pytest.mark.parametrize("name", TABLE)
def test_requests_whatever_the_size_of_the_reads(name: str, size: int) -> None:
    stream, expected = TABLE[name]
    assert parse(cut(stream, size)) == expected


@pytest.mark.parametrize(
    "name", [name for name, (stream, _) in TABLE.items() if len(stream) < 1000]
)
def test_requests_split_in_two_at_every_byte(name: str) -> None:
    stream, expected = TABLE[name]
    for middle in range(len(stream) + 1):
        assert parse([stream[:middle], stream[middle:]]) == expected


def test_sizes_of_the_table_are_what_they_say() -> None:
    assert len(TABLE["largest"][0]) == MAX_REQUEST_BYTES
    assert len(TABLE["too large"][0]) == MAX_REQUEST_BYTES + 1


LINES = st.lists(
    st.sampled_from(
        [
            ASK,
            b"request=mx_validator_check\n",
            b"recipient=a@b\n",
            b"domain=x\n",
            b"\n",
            b"\0",
            b"a",
        ]
    )
    | st.binary(max_size=20)
)


@given(LINES, st.data())
def test_any_stream_gives_the_same_however_it_is_cut(
    pieces: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    split = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert parse(split) == parse([stream])


VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"))


@given(VALUES)
def test_a_recipient_arrives_as_it_was_sent(recipient: str) -> None:
    assert parse([ASK + b"recipient=" + recipient.encode() + b"\n\n"]) == [access(recipient)]


@given(st.binary().filter(lambda value: not {0, 10} & set(value)))
def test_an_8_bit_recipient_keeps_its_bytes(recipient: bytes) -> None:
    [request] = parse([ASK + b"recipient=" + recipient + b"\n\n"])
    assert isinstance(request, tuple)
    assert request[1].encode("utf-8", "surrogateescape") == recipient


def test_format() -> None:
    assert format_attributes({"action": "DUNNO", "x": "ü"}) == "action=DUNNO\nx=ü\n\n".encode()


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(), min_size=1))
def test_no_value_can_break_out_of_its_line(attributes: dict[str, str]) -> None:
    data = format_attributes(attributes)
    assert data.count(b"\n") == len(attributes) + 1
    assert not set(data) & {0, 13}
    assert parse_reply(data).keys() == attributes.keys()


@pytest.mark.parametrize("data", [b"", b"a=b", b"a=b\n", b"a=b\nc\n\n", b"\n\n", b"junk\n\n"])
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_reply(data)
