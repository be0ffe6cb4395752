"""Messages made at random: headers and bodies of every kind, and how they are put on the wire."""

from __future__ import annotations

import random
from dataclasses import dataclass

MIB = 1024 * 1024
LIMIT = 50 * MIB  # postfix_message_size_limit
DROPPED = (b"return-path", b"delivered-to", b"x-original-to")  # the MX's own, message_drop_headers
# How large a body is, in bytes, and how often out of a thousand.
SIZES = ((0, 60), (1, 40), (100, 400), (2_000, 300), (20_000, 150), (300_000, 45), (4_000_000, 5))
HUGE_SHARE = 0.002  # messages about as large as the limit, or with such a header, or larger
HUGE = (LIMIT * 9 // 10, LIMIT - 1000, LIMIT + 1, LIMIT * 11 // 10)
HEADER_LIMIT = 1_048_560  # a header of so many bytes is refused
HUGE_HEADERS = (HEADER_LIMIT // 2, HEADER_LIMIT - 1, HEADER_LIMIT, HEADER_LIMIT * 2)
NAMES = (
    *(b"Subject", b"From", b"To", b"Message-ID", b"X-Odd_Name!#$%&'*+-^`|~", b"x", b"Bcc"),
    *(b"Content-Length", b"Content-Transfer-Encoding", b"Content-Type", b"DKIM-Signature"),
    *(b"TLS-Required", b"Resent-From", b"Errors-To", b"Apparently-To", b"Received-SPF", b"Status"),
)
# First lines that are no header, but that some server takes for more than text.
FIRST = (b"From me Mon Jan  1 00:00:00 2026", b">>From x", b" blank", b"\tx: y", b".", b"..x: y")
# Lines among the headers: odd ones, and ones that end them.
ODD = (
    *(b"X-Empty:", b"X-Blank :x", b"X-Blank\t: x", b"X-Blank  :", b"x y: z", b"no colon", b":none"),
    *(
        b"\xff: x",
        b"X-\x01: x",
        b"X-Odd: a\rb",
        b"X-Odd: a\r\rb",
        b"X-Odd: a\r",
        b"X-Odd: \x01\x7f",
    ),
    *(
        b"X-Odd: a\x00b",
        b"X-Odd: \x1b[0m",
        b"X-Bare: a\nX-LF: b",
        b"X-8-bit: R\xc3\xa9ponse \xe4\xff",
    ),
    *(b"X-" + b"a" * 2045 + b": x", b"X-" + b"a" * 2046 + b": x"),  # Postfix looks so far
)
LENGTHS = (900, 998, 2038, 2039, 2040, 2041, 2047, 2048, 2049, 4096, 70_000)  # of long lines
HOP = b"Received: from a.example by b.example; Mon, 1 Jan 2026 00:00:00 +0000\r\n"
BREAKS = (b"\r", b"\n", b"\r\n", b"\r\r\n", b"\n\n", b".", b"a", b"bc", b" ", b"\x00", b"\t")
SMUGGLED = (
    b"a\n.\n",
    b"a\n.\r\nb",
    b"\r\n.\rb",
    b"a\r\n.\r\r\n",
    b"\n.\nQUIT\n",
    b"From x\r\n",
    b" \r\n",
)
REPORT = (
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\nFinal-Recipient: rfc822; a@b\r\n--b--\r\n"
)


@dataclass(frozen=True)
class Data:
    """A message sent by DATA; `bare`: by a sender for whom a lone LF ends a line as well."""

    data: bytes
    bare: bool

    @property
    def wire(self) -> bytes:
        """What follows the 354: dots at line begins doubled, and a dot alone at the end."""
        end = b"\n" if self.bare else b"\r\n"
        first = b"." if self.data.startswith(b".") else b""
        stuffed = first + self.data.replace(end + b".", end + b"..")
        ends = not stuffed or stuffed.endswith(b"\r\n")
        return stuffed + (b".\r\n" if ends else b"\r\n.\r\n")


@dataclass(frozen=True)
class Chunks:
    """A message sent by BDAT."""

    chunks: tuple[bytes, ...]


Content = Data | Chunks


class Contents:
    """Makes messages; all of it follows from the generator it is given."""

    def __init__(self, generator: random.Random) -> None:
        self._random = generator

    def content(self, chunking: bool) -> Content:
        """A message, by BDAT if the sender may and likes to."""
        data = self._huge() if self._random.random() < HUGE_SHARE else self._message()
        if chunking and self._random.random() < 0.4:
            return Chunks(tuple(self._cut(data)))
        return Data(data, bare=self._random.random() < 0.5)

    def _cut(self, data: bytes) -> list[bytes]:
        """Cut a message into chunks; only the last may be empty."""
        count = self._random.choice((0, 0, 1, 3, 9))
        places = sorted(self._random.randint(0, len(data)) for _ in range(count))
        parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
        *first, last = parts
        return [*filter(None, first), last]

    def _huge(self) -> bytes:
        if self._random.random() < 0.5:
            name, size = b"X-Huge: ", self._random.choice(HUGE_HEADERS)
            return name + b"z" * (size - len(name)) + b"\r\n\r\nbody\r\n"
        line = b"x" * 76 + b"\r\n"
        return b"Subject: huge\r\n\r\n" + line * (self._random.choice(HUGE) // len(line))

    def _message(self) -> bytes:
        form = self._random.randrange(30)
        if form == 0:
            return b""
        if form == 1:
            return self._body()  # no header
        if form == 2:
            return self._headers()  # no body, not even the blank line
        if form == 3:
            first = self._random.choice(FIRST) + b"\r\n"
            return first + self._headers() + b"\r\n" + self._body()
        if form == 4:
            return self._headers() + self._body()  # the body begins where a header is awaited
        return self._headers() + b"\r\n" + self._body()

    # -- headers ----------------------------------------------------------------

    def _headers(self) -> bytes:
        form = self._random.randrange(20)
        if form == 0:  # hundreds
            return b"".join(self._header() for _ in range(self._random.randint(100, 600)))
        if form == 1:  # many hops; with the 1,000th, our own counted, it is refused
            return HOP * self._random.choice((30, 60, 998, 999))
        return b"".join(self._header() for _ in range(self._random.choice((0, 1, 2, 5, 9))))

    def _header(self) -> bytes:
        makers = (self._usual, self._forged, self._folded, self._long, self._odd)
        return self._random.choices(makers, (10, 3, 3, 2, 4))[0]() + b"\r\n"

    def _usual(self) -> bytes:
        return self._random.choice(NAMES) + b": " + self._text(60)

    def _forged(self) -> bytes:
        names = (b"Return-Path", b"Delivered-To", b"X-Original-To", b"x-ORIGINAL-to", b"Received")
        colon = self._random.choice((b": ", b":", b" : ", b":\t", b":\r\n "))
        return self._random.choice(names) + colon + b"<forged@isp.example>" + self._fold()

    def _folded(self) -> bytes:
        return b"X-Folded: " + self._text(20) + self._fold() + self._fold()

    def _long(self) -> bytes:
        if self._random.random() < 0.5:
            return b"X-Long: " + b"z" * self._random.choice(LENGTHS)
        return b"To: a@isp.example" + b",\r\n b@isp.example" * self._random.choice((10, 1000))

    def _odd(self) -> bytes:
        return self._random.choice(ODD)

    def _fold(self) -> bytes:
        text = self._text(9)
        return self._random.choice((b"", b"\r\n " + text, b"\r\n\t" + text, b"\r\n \r\n \tx"))

    def _text(self, high: int) -> bytes:
        return bytes(self._random.choices(range(32, 127), k=self._random.randint(0, high)))

    # -- bodies -----------------------------------------------------------------

    def _body(self) -> bytes:
        sizes, weights = zip(*SIZES, strict=True)
        size = self._random.randint(0, self._random.choices(sizes, weights)[0])
        makers = (
            self._lines,
            lambda size: b"y" * size,  # one line without an end
            lambda size: (b"x" * self._random.choice(LENGTHS[:-1]) + b"\r\n") * (size // 1000 + 1),
            self._random.randbytes,
            lambda size: bytes(self._random.choices(range(128, 256), k=min(size, 20_000))),
            lambda size: self._mixed((b".", b"..", b"\r\n", b"\r\n", b"x"), size),
            lambda size: self._mixed(BREAKS, size),
            lambda _: self._random.choice(SMUGGLED) + self._text(20) + b"\r\n",
            lambda _: REPORT,
        )
        return self._random.choices(makers, (4, 2, 2, 1, 1, 2, 2, 2, 1))[0](size)

    def _lines(self, size: int) -> bytes:
        return b"".join(self._text(78) + b"\r\n" for _ in range(size // 40 + 1))

    def _mixed(self, parts: tuple[bytes, ...], size: int) -> bytes:
        return b"".join(self._random.choices(parts, k=min(size, 200)))
