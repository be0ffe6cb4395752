"""What is in the mailbox: envelope headers, one message per recipient, the bytes that were sent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from testinfra.host import Host

from platform_stub import StubClient
from probes import Mx, eventually

MIB = 1024 * 1024
RECIPIENTS = 100  # of one message, at most
HEADER_BYTES = 16 * 65535  # of one header, at most; Postfix counts a line end as one
HEADER = b"Subject: test\r\n\r\n"
LOCAL_PARTS = (
    "Bounce+42=joe=example.com",
    "UPPER.case",
    "a.b-c_d#e/f",
    "x=y.z+tag",
    "o'neil",
    "{|}~^`?*$&",
    "0" * 64,
    '"a b"',
    '"very.(),:;<>[]quoted"',
    "b" * 63 + "+",
    "-lead",
)
BODIES = {
    "8-bit": bytes(range(128, 256)) * 3 + b"\r\n",
    "lines of 1,200 bytes": (b"x" * 1200 + b"\r\n") * 20,
    "a line of a million bytes": b"y" * 1_000_000 + b"\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n.x\r\n",
    "trailing blanks": b"a \r\nb\t\r\n\r\n\r\n \r\n",
    "From line": b"From somebody Mon Jan  1 00:00:00 2026\r\n",
    "tabs and controls": b"\t\x01\x02\x7f\x1b[0m\r\n",
    "CR within a line": b"a\rb\r\rc\r\n\r.\r.\rd\r\n",
}


@pytest.mark.parametrize("local", LOCAL_PARTS)
def test_recipient_is_kept_as_written(
    mailbox: Mx, platform: StubClient, domain: str, local: str
) -> None:
    platform.answer(domain, "allow")
    assert mailbox.send(f"{local}@{domain}", HEADER).code == 250
    (message,) = mailbox.fetch_when(1)
    assert message.original_to == f"{local}@{domain}"
    assert message.raw.startswith(b"Return-Path: <>\r\n")


def test_upper_case_domain_is_kept_as_written(
    mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    mailbox.send(f"a@{domain.upper()}", HEADER)
    assert mailbox.fetch_when(1)[0].original_to == f"a@{domain.upper()}"


def test_hundred_recipients_give_hundred_messages(
    mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    recipients = {f"bounce+{number}=joe@{domain}" for number in range(RECIPIENTS)}
    with mailbox.smtp() as session:
        session.command("MAIL FROM:<sender@isp.example>")
        for recipient in sorted(recipients):
            assert session.command(f"RCPT TO:<{recipient}>").code == 250
        one_more = session.command(f"RCPT TO:<one-more@{domain}>")
        assert (one_more.code, one_more.text[:5]) == (452, "4.5.3")
        assert session.message(HEADER + b"same for all\r\n").code == 250
    found = mailbox.fetch_when(RECIPIENTS)
    assert len(found) == RECIPIENTS
    assert {message.original_to for message in found} == recipients
    assert {message.sent for message in found} == {HEADER + b"same for all\r\n"}


def test_recipients_that_differ_in_case_only_give_a_message_each(
    mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    first, second, twin = f"Bounce+A=b@{domain}", f"other@{domain}", f"bounce+a=B@{domain}"
    with mailbox.smtp() as session:
        session.command("MAIL FROM:<>")
        for recipient in (first, second):
            assert session.command(f"RCPT TO:<{recipient}>").code == 250
        assert str(session.command(f"RCPT TO:<{twin}>")) == (
            f"452 4.5.3 <{twin}>: Recipient address rejected: This may differ from an earlier"
            " recipient in case only, send to it in a transaction of its own"
        )
        assert session.message(HEADER + b"1\r\n").code == 250
        session.command("MAIL FROM:<>")
        assert session.command(f"RCPT TO:<{twin}>").code == 250
        assert session.message(HEADER + b"2\r\n").code == 250
    found = {message.original_to: message.sent[-3:] for message in mailbox.fetch_when(3)}
    assert found == {first: b"1\r\n", second: b"1\r\n", twin: b"2\r\n"}


def test_the_same_recipient_twice_gives_one_message(
    host: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    with mailbox.smtp() as session:
        session.command("MAIL FROM:<>")
        for local in ("A", "A", "b"):
            assert session.command(f"RCPT TO:<{local}@{domain}>").code == 250
        assert session.message(HEADER).code == 250
    eventually(lambda: host.check_output("postqueue -j"), lambda queued: not queued)
    assert sorted(message.original_to for message in mailbox.fetch()) == [
        f"A@{domain}",
        f"b@{domain}",
    ]


def test_refused_recipients_do_not_end_the_transaction(
    mailbox: Mx, platform: StubClient, domain: str
) -> None:
    """Else a sender that names them in the same order each time would never come to its message."""
    platform.answer(domain, "allow")
    with mailbox.smtp() as session:
        session.command("MAIL FROM:<>")
        assert session.command(f"RCPT TO:<a@{domain}>").code == 250
        for number in range(25):
            assert session.command(f"RCPT TO:<{number}@foreign.{domain}>").code == 554
        assert session.message(HEADER).code == 250
    assert mailbox.fetch_when(1)[0].original_to == f"a@{domain}"


def test_forged_envelope_headers_are_removed(
    mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    kept = (
        b"Bcc: kept@x.example\r\nContent-Length: 3\r\nSubject: kept\r\n"
        b"Content-Type: message/rfc822\r\n\r\n"
        b"Return-Path: <inner@x.example>\r\nX-Original-To: inner@x.example\r\n\r\nbody\r\n"
    )
    forged = (
        b"Return-Path: <fake@x.example>\r\nX-Original-To: fake@x.example\r\n"
        b"Delivered-To: fake@x.example\r\nx-original-TO : fake@x.example\r\n"
        b"X-Original-To:\r\n fake@x.example\r\n"
    )
    assert mailbox.send(f"real@{domain}", forged + kept).code == 250
    (message,) = mailbox.fetch_when(1)
    assert message.original_to == f"real@{domain}"
    assert message.sent == kept
    assert b"fake@" not in message.raw


@pytest.mark.parametrize("name", BODIES)
def test_body_is_stored_byte_for_byte(
    mailbox: Mx, platform: StubClient, domain: str, name: str
) -> None:
    platform.answer(domain, "allow")
    data = HEADER + BODIES[name]
    assert mailbox.send(f"a@{domain}", data).code == 250
    assert mailbox.fetch_when(1)[0].sent == data
    assert mailbox.fetch_pop3()[0].sent == data


def test_forty_mebibytes(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    data = HEADER + (os.urandom(36).hex().encode() + b"\r\n") * (40 * MIB // 74)
    assert mailbox.send(f"a@{domain}", data).code == 250
    stored = mailbox.fetch_when(1)[0].sent
    assert hashlib.sha256(stored).hexdigest() == hashlib.sha256(data).hexdigest()


def test_long_header(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    lines = b"".join(b" user%d@isp.example,\r\n" % number for number in range(20_000))
    data = b"To: first@isp.example,\r\n" + lines + b" last@isp.example\r\n\r\nbody\r\n"
    assert mailbox.send(f"a@{domain}", data).code == 250
    assert mailbox.fetch_when(1)[0].sent == data


@pytest.mark.parametrize("filler", [b"x", b"\r\n user@isp.example,"], ids=["long", "folded"])
def test_header_is_kept_whole_or_refused(
    mailbox: Mx, platform: StubClient, domain: str, filler: bytes
) -> None:
    platform.answer(domain, "allow")
    most = b"To:" + filler * ((HEADER_BYTES - 4) // len(filler.replace(b"\r", b"")))
    for header, code in ((most, 250), (most + filler, 550)):
        data = header + b"\r\nSubject: x\r\n\r\nbody\r\n"
        reply = mailbox.send(f"a@{domain}", data)
        assert reply.code == code, reply
        if code == 250:
            assert mailbox.fetch_when(1)[0].sent == data
    assert reply.text == "5.3.4 A header of this message is too long"


def test_chunking(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    data = HEADER + b".\r\nsent with BDAT\r\n"
    with mailbox.smtp() as session:
        session.command("MAIL FROM:<> BODY=8BITMIME")
        session.command(f"RCPT TO:<a@{domain}>")
        session.send(f"BDAT {len(data)} LAST\r\n".encode() + data)
        assert session.getreply()[0] == 250
    assert mailbox.fetch_when(1)[0].sent == data


def test_published_bounces(
    mailbox: Mx, platform: StubClient, domain: str, bounce_corpus: list[Path]
) -> None:
    """Every sample of the corpus comes out as it went in, whatever wrote it."""
    platform.answer(domain, "allow")
    samples = {}
    with mailbox.smtp() as session:
        for path in bounce_corpus:
            lines = path.read_bytes().replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
            if lines[0].startswith(b"From "):  # mbox's separator is no part of the message
                del lines[0]
            recipient = f"bounce+{path.stem}@{domain}"
            samples[recipient] = b"\r\n".join(lines) + b"\r\n"
            session.command("MAIL FROM:<>")
            assert session.command(f"RCPT TO:<{recipient}>").code == 250, path.name
            assert session.message(samples[recipient]).code == 250, path.name
    found = {message.original_to: message for message in mailbox.fetch_when(len(samples))}
    assert set(found) == set(samples)
    for recipient, sample in samples.items():
        assert found[recipient].sent == without_envelope_headers(sample), recipient


def without_envelope_headers(data: bytes) -> bytes:
    """Leave out the headers that only the MX itself may set."""
    head, blank, body = data.partition(b"\r\n\r\n")
    kept: list[bytes] = []
    dropping = False
    for line in head.split(b"\r\n"):
        if not line.startswith((b" ", b"\t")):
            name = line.split(b":")[0].strip().lower()
            dropping = name in (b"return-path", b"delivered-to", b"x-original-to")
        if not dropping:
            kept.append(line)
    return b"\r\n".join(kept) + blank + body


def test_fifty_sessions_from_one_address(mx: Mx) -> None:
    sessions = [mx.imap() for _ in range(50)]
    try:
        for session in sessions:
            session.__enter__()
    finally:
        for session in sessions:
            session.__exit__(None, None, None)


def test_mail_leaves_only_when_it_is_deleted(
    host: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    mailbox.send(f"a@{domain}", HEADER)
    mailbox.fetch_when(1)
    assert mailbox.count() == 1
    mailbox.empty()
    eventually(
        lambda: host.check_output("find /var/vmail -name 'u.*' | wc -l"), lambda seen: seen == "0"
    )
