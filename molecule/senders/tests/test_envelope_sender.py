"""A sender that gets a 250 is stored as what it is; one that cannot be stored gets no 250."""

from __future__ import annotations

import quopri
import string
from collections.abc import Mapping

import idna
from testinfra.host import Host

from platform_stub import StubClient
from probes import Mx, Smtp, eventually

HEADER = "Subject: Réponse\r\n\r\n".encode()
HELPER = "/usr/local/lib/oempro-mx/ascii-sender"
REFUSALS_PER_SESSION = 8  # from the tenth on, each would take a second
LONGEST = 254  # RFC 5321 4.5.3.1.3: 256 octets, of which two are the angle brackets
ATEXT = string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~"  # RFC 5321 4.1.2
PRINTABLE = [chr(code) for code in range(32, 127)]
CONTROLS = [code for code in (*range(32), 127) if code not in b"\t\n\r"]


def stored(local: str) -> str:
    """Return an address as Dovecot writes it: with quotes only where a local part needs them."""
    if set(local) <= set(ATEXT + ".") and ".." not in f".{local}." and local:
        return f"<{local}@isp.example>"
    escaped = local.replace("\\", "\\\\").replace('"', '\\"')
    return f'<"{escaped}"@isp.example>'


def unchanged(*senders: str) -> dict[str, str]:
    return {sender: f"<{sender}>" for sender in senders}


# What RFC 5321 allows, and the Return-Path that it gets.
LEGAL = {
    "": "<>",
    **{f"{char}@isp.example": stored(char) for char in ATEXT},
    **{f"x{char}y@isp.example": stored(f"x{char}y") for char in ATEXT + "."},
    **{f'"x\\{char}y"@isp.example': stored(f"x{char}y") for char in PRINTABLE},
    **{f'"{char}"@isp.example': stored(char) for char in PRINTABLE if char not in '"\\'},
    **unchanged("x@isp", "x@localhost", "x@1isp.2example", "x@i-s-p.example", "x@[192.0.2.1]"),
    **unchanged("x@[IPv6:2001:db8::1]", "x@[IPv6:::ffff:192.0.2.1]", "x@xn--fsqu00a.example"),
    **unchanged('""@isp.example', '"x@y"@isp.example', '"<x>"@isp.example', '"x y z"@isp.example'),
    **unchanged("SRS0=a=b=isp.example=x@isp.example", "isp.example!x%y+1=z@isp.example"),
    **unchanged("x@" + "y." * 100 + "example", "x" * 64 + "@" + "y" * 63 + ".example"),
    **unchanged("x" * (LONGEST - 12) + "@isp.example", '"' + '\\"' * 100 + '"@isp.example'),
    # Appendix C: the route is stripped.
    "@a.example:x@isp.example": "<x@isp.example>",
    "@a.example,@b.example:x@isp.example": "<x@isp.example>",
}
# What RFC 6531 adds. All of it can be read back.
OUTSIDE_ASCII = (
    *("jürgen@isp.example", "Jürgen.X+y=z@ISP.example", "ü=E7@isp.example", "ü%x!y@isp.example"),
    *('"Jürgen X"@isp.example', '"ü@x"@isp.example', '"ü\\"x"@isp.example', "ü@[192.0.2.1]"),
    *("用户@例子.广告", "x@bücher.example", '"x y"@bücher.example', "ü@xn--fsqu00a.example"),
    *("e\u0301@isp.example", "\u0130@isp.example", "\U0001f600@isp.example", "\u0080@isp.example"),
    *(
        "x@\U0001f600.example",
        "x@faß.example",
        "ü" * 121 + "@isp.example",
        "用" * 80 + "@例.example",
    ),
)
# What no RFC allows. It is taken, since some senders are so, and stored as Postfix and Dovecot read
# it: comments and blanks go, a name without a domain gets the host's.
SLOPPY = {
    "x": "<x@{mx}>",
    "MAILER-DAEMON": "<>",
    ".x.@isp.example": '<".x."@isp.example>',
    "x..y@isp.example": '<"x..y"@isp.example>',
    "x@y@isp.example": '<"x@y"@isp.example>',
    "@isp.example": '<""@isp.example>',
    "x@isp.example.": "<x@isp.example>",
    "x@isp.example@": "<>",
    "x@i_sp.example": "<x@i_sp.example>",
    " x@isp.example ": "<x@isp.example>",
    "x(comment)@isp.example": "<x@isp.example>",
    "Joe X <x@isp.example>": "<x@isp.example>",
    "x:y@isp.example": '<"x:y"@isp.example>',
    "\\x@isp.example": "<x@isp.example>",
    '"x\ty"@isp.example': '<"x y"@isp.example>',
    '"x\ry"@isp.example': '<"x y"@isp.example>',
    "x" * 500 + "@isp.example": "<" + "x" * 500 + "@isp.example>",
}
REFUSED = (
    *(b"x%cy@isp.example" % byte for byte in (*CONTROLS, *range(128, 256))),
    *(b'"x\\%cy"@isp.example' % byte for byte in (*CONTROLS, *range(128, 256))),
    *(b"x@is%cp.example" % byte for byte in (*CONTROLS, *range(128, 256))),
    *(b"\xc0\x80@isp.example", b"\xed\xa0\x80@isp.example"),  # no UTF-8 either (RFC 3629 3)
    *(b"x y@isp.example", b"x@isp..example", b"x@1.2.3.4", b"x@[1.2.3]", b'"x@isp.example'),
    *(
        b"x@a.example,y@b.example",
        b"x@" + b"y" * 64 + b".example",
        b"x@" + b"y." * 130 + b"example",
    ),
    *(
        b"x" * 501 + b"@isp.example",
        b"x" * 3000 + b"@isp.example",
        b"\xc3\xbc" * 251 + b"@isp.example",
    ),
)


def reply_to(session: Smtp, sender: bytes) -> int:
    """Return the reply to MAIL FROM, with the keyword that a sender outside ASCII needs."""
    session.send(b"MAIL FROM:<%s>%s\r\n" % (sender, b"" if sender.isascii() else b" SMTPUTF8"))
    return session.getreply()[0]


def deliver(mailbox: Mx, domain: str, senders: list[str]) -> dict[str, str]:
    """Send a message from each sender; return the Return-Path that each got."""
    with mailbox.smtp() as session:
        for number, sender in enumerate(senders):
            assert reply_to(session, sender.encode()) == 250, sender
            assert session.command(f"RCPT TO:<{number}@{domain}>").code == 250
            assert session.message(HEADER).code == 250, sender
    found = mailbox.fetch_when(len(senders))
    assert len(found) == len(senders)
    paths = {int(each.original_to.partition("@")[0]): each.return_path for each in found}
    return {sender: paths[number] for number, sender in enumerate(senders)}


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, str]:
    assert set(found) == set(expected)
    return {sender: path for sender, path in found.items() if path != expected[sender]}


def read_back(return_path: str) -> str:
    """Return the sender that a Return-Path in ASCII stands for, as the documentation says it."""
    local, _, domain = return_path[1:-1].rpartition("@")
    if domain == "smtputf8.invalid":
        return quopri.decodestring(local).decode()
    return f"{local}@{idna.decode(domain)}"


def test_legal_senders(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    assert differences(deliver(mailbox, domain, list(LEGAL)), LEGAL) == {}


def test_senders_outside_ascii(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    found = deliver(mailbox, domain, list(OUTSIDE_ASCII))
    assert all(path.isascii() for path in found.values())
    assert {sender: read_back(path) for sender, path in found.items()} == {
        sender: sender for sender in OUTSIDE_ASCII
    }
    assert found["x@bücher.example"] == "<x@xn--bcher-kva.example>"
    assert found["jürgen@isp.example"] == "<j=C3=BCrgen=40isp.example@smtputf8.invalid>"


def test_sloppy_senders(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    expected = {sender: path.format(mx=mailbox.hostname) for sender, path in SLOPPY.items()}
    assert differences(deliver(mailbox, domain, list(SLOPPY)), expected) == {}


def test_senders_that_are_refused(mx: Mx) -> None:
    replies = {}
    for start in range(0, len(REFUSED), REFUSALS_PER_SESSION):
        with mx.smtp() as session:
            for sender in REFUSED[start : start + REFUSALS_PER_SESSION]:
                replies[sender] = reply_to(session, sender)
    assert {sender: code for sender, code in replies.items() if code not in (500, 501)} == {}


def test_requeued_mail_keeps_its_sender(
    host: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    host.check_output("systemctl stop dovecot.socket dovecot.service")
    try:
        with mailbox.smtp() as session:
            assert reply_to(session, "jürgen@isp.example".encode()) == 250
            session.send(f"RCPT TO:<jürgen@{domain}>\r\n".encode())
            assert session.getreply()[0] == 250
            assert session.message(HEADER).code == 250
        eventually(lambda: host.check_output("postqueue -j"), lambda seen: "delay_reason" in seen)
        host.check_output("postsuper -r ALL")
    finally:
        host.check_output("systemctl start dovecot.service")
    host.check_output("postqueue -f")
    (message,) = mailbox.fetch_when(1)
    assert message.return_path == "<j=C3=BCrgen=40isp.example@smtputf8.invalid>"
    assert message.original_to == f"jürgen@{domain}"
    assert message.sent == HEADER


def test_only_senders_outside_ascii_need_the_helper(
    host: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    """Without it they are told to come back; nobody else notices."""
    platform.answer(domain, "allow")
    host.check_output(f"chmod a-x {HELPER} && postfix reload")
    try:
        replies = {}
        for sender in ("", "x@isp.example", "x@bücher.example"):
            with mailbox.smtp() as session:
                assert reply_to(session, sender.encode()) == 250
                session.command(f"RCPT TO:<a@{domain}>")
                replies[sender] = session.message(HEADER).code
    finally:
        host.check_output(f"chmod a+x {HELPER} && postfix reload")
    assert replies == {"": 250, "x@isp.example": 250, "x@bücher.example": 451}
    assert {message.return_path for message in mailbox.fetch_when(2)} == {"<>", "<x@isp.example>"}
