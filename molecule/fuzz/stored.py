"""What the MX stores of what was sent: the rules of Postfix and Dovecot, each with its source.

Everything is to be kept byte for byte. Each rule below is a known, documented exception; a
difference that none of them explains is a fault. File names are those of Postfix's sources.
"""

from __future__ import annotations

from collections.abc import Iterator

from contents import DROPPED, Chunks, Content, Data

RECORD = 2048  # line_length_limit: Postfix looks no further for the colon of a header
HOPS = 1000  # hopcount_limit, our own Received header counted
NEAR = (
    100  # smtpd counts long lines as more than they are: within a 100th of the limit, both is right
)


def stored(content: Content) -> bytes:
    """Return what is in the mailbox below the headers of the MX."""
    return b"".join(shown(line) + b"\r\n" for line in headers_and_body(lines_of(content)))


def size(content: Content) -> int:
    """Return how many bytes were sent."""
    return len(content.data) if isinstance(content, Data) else sum(map(len, content.chunks))


def headers(content: Content) -> Iterator[bytes]:
    """The headers of a message as Postfix sees them, each with its continuation lines."""
    header = b""
    for line in lines_of(content):
        if header_name(line) is not None:
            if header:
                yield header
            header = line
        elif line.startswith((b" ", b"\t")):
            header += b"\n" + line
        else:
            break
    yield header


def hops(content: Content) -> int:
    """Return how many Received headers the message has, our own included."""
    return 1 + sum((header_name(each) or b"").lower() == b"received" for each in headers(content))


def lines_of(content: Content) -> list[bytes]:
    """Return the lines of a message as smtpd takes them."""
    return of_data(content) if isinstance(content, Data) else of_chunks(content)


# -- smtpd.c ------------------------------------------------------------------------------------


def of_data(content: Data) -> list[bytes]:
    """The lines of a message that came by DATA (receive_data_message()).

    A lone LF ends a line as CRLF does (smtpd_forbid_bare_newline = normalize), but only CRLF.CRLF
    ends the message: a dot alone on a line that a lone LF begins or ends is left out.
    """
    lines: list[bytes] = []
    bare_before = False
    for each in content.wire.split(b"\n"):
        bare = not each.endswith(b"\r")
        line = each if bare else each[:-1]
        if not lines and line.lstrip(b">").startswith(b"From "):
            line = b"X-Mailbox-Line: " + line  # mbox's separator
        if not lines and line.startswith((b" ", b"\t")):
            lines.append(b"")  # must not continue our own Received header
        if line.startswith(b"."):
            if line == b"." and (bare or bare_before):
                bare_before = bare
                continue
            line = line[1:]
            if not line:
                return lines
        lines.append(line)
        bare_before = bare
    raise ValueError("the message does not end")


def of_chunks(content: Chunks) -> list[bytes]:
    """The lines of a message that came by BDAT (bdat_cmd()); the last gets an end if need be."""
    *lines, last = b"".join(content.chunks).split(b"\n")
    return [line.removesuffix(b"\r") for line in lines] + ([last] if last else [])


# -- is_header.c, mime_state.c, cleanup_message.c -------------------------------------------------


def header_name(line: bytes) -> bytes | None:
    """Return the name if a line begins a header (is_header_buf()): printable ASCII and a colon."""
    name, colon, _ = line[:RECORD].partition(b":")
    name = name.rstrip(b" \t")
    printable = all(32 < byte < 127 for byte in name)
    return name if colon and name and printable else None


def headers_and_body(lines: list[bytes]) -> Iterator[bytes]:
    """Leave out the headers that only the MX may set, and see where the headers end.

    The blanks between a header's name and its colon go. A line that is no header ends the
    headers, and gets a blank line before it if it is none itself. A header's line ends at a byte of
    zero (vstring_strncat()), which RFC 5322 allows nowhere.
    """
    dropping = False
    rest = iter(lines)
    for line in rest:
        name = header_name(line)
        if name is not None:
            dropping = name.lower() in DROPPED
        elif not line.startswith((b" ", b"\t")):
            if line:
                yield b""
            yield line
            break
        if not dropping:
            kept = line if name is None else name + line[len(name) :].lstrip(b" \t")
            yield kept.partition(b"\x00")[0]
    yield from rest


# -- Dovecot ---------------------------------------------------------------------------------------

# A byte of zero may not be in an IMAP literal (RFC 3501, 9: CHAR8). Dovecot stores it, and shows
# this instead (imap-msgpart.c: i_stream_create_nonuls()).
NUL = b"\x80"


def shown(line: bytes) -> bytes:
    """Return what an IMAP client sees of a line that Dovecot has stored.

    sdbox keeps lines with LF (dbox-save.c: i_stream_create_lf()): a lone CR right before CRLF
    cannot be told from a part of it, and is lost.
    """
    return line.removesuffix(b"\r").replace(b"\x00", NUL)
