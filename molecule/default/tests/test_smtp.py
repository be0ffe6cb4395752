"""What a sender's mail server sees: the codes and texts of every case."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
from testinfra.host import Host

from faults import MESSAGE
from platform_stub import StubClient
from probes import Mx, Smtp, eventually

SENDERS = ("", "bounce@isp.example", "a@no-such-tld", "o'neil+x=y@sub.isp.example")


@pytest.mark.parametrize("sender", SENDERS)
def test_authorised_domain_is_accepted(
    mailbox: Mx, platform: StubClient, domain: str, sender: str
) -> None:
    platform.answer(domain, "allow")
    reply = mailbox.send(f"anybody@{domain}", MESSAGE, sender)
    assert (reply.code, reply.text[:19]) == (250, "2.0.0 Ok: queued as")
    (message,) = mailbox.fetch_when(1)
    assert message.return_path == f"<{sender}>"


def test_foreign_domain_is_denied(mx: Mx, domain: str) -> None:
    assert str(mx.rcpt(f"a@{domain}")) == f"554 5.7.1 <a@{domain}>: Relay access denied"


def test_one_question_per_recipient_with_the_domain_alone(
    mx: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    with mx.smtp() as session:
        session.command("MAIL FROM:<somebody@elsewhere.example>")
        assert session.command(f"RCPT TO:<bounce+1=joe@{domain}>").code == 250
    (request,) = platform.requests()
    assert request["domain"] == domain
    assert request["query"] == f"domain={domain}"
    assert request["authorized"] is True


def test_domain_is_asked_in_lower_case_and_encoded(
    mx: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    assert mx.rcpt(f"a@{domain.upper()}").code == 250
    assert mx.rcpt(f"a@{domain}.").code == 250
    assert {request["domain"] for request in platform.requests()} == {domain}


@pytest.mark.parametrize("label", ["b&x=1", "b+c", "b/../c"])
def test_domain_outside_ascii_letters_is_refused(
    mx: Mx, platform: StubClient, domain: str, label: str
) -> None:
    platform.default("allow")
    assert 500 <= mx.rcpt(f"a@{label}.{domain}").code < 600
    assert platform.count() == 0


def test_internationalised_domain_is_asked_as_a_labels(
    mx: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(f"xn--bcher-kva.{domain}", "allow")
    with mx.smtp() as session:
        session.command("MAIL FROM:<> SMTPUTF8")
        for number, label in enumerate(("bücher", "BÜCHER", "xn--bcher-kva")):
            session.send(f"RCPT TO:<jürgen+{number}@{label}.{domain}>\r\n".encode())
            assert session.getreply()[0] == 250, label
        session.send(f"RCPT TO:<a@bächer.{domain}>\r\n".encode())
        assert session.getreply()[0] == 554
    asked = {request["domain"] for request in platform.requests()}
    assert asked == {f"xn--bcher-kva.{domain}", f"xn--bcher-gra.{domain}"}


def test_platform_cannot_say(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "bad_gateway")
    reply = mx.rcpt(f"a@{domain}")
    assert reply.code == 451
    assert reply.text.startswith(f"4.4.3 <a@{domain}>: ")
    assert "try again" in reply.text


def test_validator_is_not_running(host: Host, mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    assert host.run("supervisorctl stop mx-validator").rc == 0
    try:
        reply = mx.rcpt(f"a@{domain}")
    finally:
        assert host.run("supervisorctl start mx-validator").rc == 0
    assert (reply.code, reply.text[:5]) == (451, "4.4.3")
    eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code == 250)


def test_own_host_name(mailbox: Mx, platform: StubClient) -> None:
    for local in ("postmaster", "abuse", "Postmaster"):
        assert mailbox.send(f"{local}@{mailbox.hostname}", MESSAGE).code == 250
    assert mailbox.send("postmaster", MESSAGE).code == 250  # RFC 5321, 4.5.1
    assert str(mailbox.rcpt(f"catchall@{mailbox.hostname}")).startswith("550 5.1.1 ")
    for local in ("root", "double-bounce"):  # the second is one of Postfix's own
        assert mailbox.rcpt(f"{local}@{mailbox.hostname}").code == 550
    found = {message.original_to for message in mailbox.fetch_when(4)}
    assert {f"Postmaster@{mailbox.hostname}", f"abuse@{mailbox.hostname}"} <= found
    assert platform.count() == 0


MALFORMED = (
    "nobody",
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    "a@192.0.2.1",
    "a@localhost",
    "a@b..example",
    "a@-b.example",
    "a@b-.example",
    "a@" + "x" * 64 + ".example",
    "a@" + "x." * 130 + "example",
    "a@b c.example",
    "a@.example",
    "a@",
)


@pytest.mark.parametrize("recipient", MALFORMED)
def test_malformed_domain_is_refused_without_asking(
    mx: Mx, platform: StubClient, recipient: str
) -> None:
    platform.default("allow")
    assert 500 <= mx.rcpt(recipient).code < 600
    assert platform.count() == 0


def test_address_literal_of_the_host_itself(mx: Mx, platform: StubClient) -> None:
    platform.default("allow")
    assert mx.rcpt(f"postmaster@[{mx.address}]").code == 554
    assert platform.count() == 0


def test_message_too_large(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    limit = 50 * 1024 * 1024
    with mx.smtp() as session:
        assert session.esmtp_features["size"] == str(limit)
        reply = session.command(f"MAIL FROM:<> SIZE={limit + 1}")
        assert (reply.code, reply.text[:5]) == (552, "5.3.4")
        session.command("RSET")
        assert session.command("MAIL FROM:<>").code == 250
        assert session.command(f"RCPT TO:<a@{domain}>").code == 250
        assert session.message(b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 52_500).code == 552


def test_too_little_disk(host: Host, mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    minimum, recipients = host.check_output(
        "postconf -h queue_minfree smtpd_recipient_limit"
    ).split()
    with mx.smtp() as session:
        size = int(session.esmtp_features["size"])
    # One transaction of the largest size finds room, in the queue and for every recipient.
    assert int(minimum) == size * (1 + int(recipients))
    free = host.check_output("stat -f -c '%a * %S' /var/spool/postfix")
    # Asking for more space than there is stands for a disk that has less.
    host.check_output(f"postconf -e queue_minfree=$(({free} * 2)) && postfix reload")
    try:
        eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code != 250)
        with mx.smtp() as session:
            reply = session.command("MAIL FROM:<>")
    finally:
        host.check_output("postconf -e queue_minfree=%s && postfix reload", minimum)
    assert (reply.code, reply.text[:5]) == (452, "4.3.1")


def test_what_is_offered(mx: Mx) -> None:
    with mx.smtp() as session:
        assert set(session.esmtp_features) == {
            *("pipelining", "size", "starttls", "enhancedstatuscodes", "8bitmime", "chunking"),
            "smtputf8",
        }


@pytest.mark.parametrize(
    "command",
    ["VRFY postmaster", "EXPN postmaster", "ETRN example.com", "AUTH PLAIN AGEAYg==", "AUTH LOGIN"],
)
def test_command_is_refused(mx: Mx, command: str) -> None:
    with mx.smtp() as session:
        assert 500 <= session.command(command).code < 600


def test_dsn_is_refused(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    with mx.smtp() as session:
        assert session.command("MAIL FROM:<> RET=HDRS").code == 501
        assert session.command("MAIL FROM:<>").code == 250
        reply = session.command(f"RCPT TO:<a@{domain}> NOTIFY=SUCCESS")
        assert 500 <= reply.code < 600
        assert session.command(f"RCPT TO:<a@{domain}> ORCPT=rfc822;x@y.example").code >= 500


def test_starttls(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    trust = ssl.create_default_context()
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    with mailbox.smtp() as session:
        session.starttls(context=trust)
        session.ehlo("sender.example")
        assert isinstance(session.sock, ssl.SSLSocket)
        assert session.sock.version() == "TLSv1.3"
        session.command("MAIL FROM:<>")
        session.command(f"RCPT TO:<a@{domain}>")
        assert session.message(MESSAGE).code == 250
    (message,) = mailbox.fetch_when(1)
    assert b"using TLSv1.3" in message.raw


def test_banner_names_no_product(mx: Mx) -> None:
    with socket.create_connection((mx.address, 25), timeout=30) as connection:
        assert connection.recv(512) == f"220 {mx.hostname} ESMTP\r\n".encode()


def test_ipv6(variables: dict[str, Any], platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    with Smtp(variables["testhost_address6"], 25, timeout=30) as session:
        session.ehlo("sender.example")
        session.command("MAIL FROM:<>")
        assert session.command(f"RCPT TO:<a@{domain}>").code == 250


@pytest.mark.parametrize(
    "end",
    [
        *(b"\n.\n", b"\n.\r\n", b"\r\n.\n"),
        *(b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r"),
        *(b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\0\r\n.\r\0\n"),
    ],
)
def test_smuggling_leaves_one_message(
    mailbox: Mx, platform: StubClient, domain: str, end: bytes
) -> None:
    platform.answer(domain, "allow")
    smuggled = f"MAIL FROM:<evil@x.example>\r\nRCPT TO:<b@{domain}>\r\nDATA\r\n".encode()
    with mailbox.smtp() as session:
        session.command("MAIL FROM:<>")
        session.command(f"RCPT TO:<a@{domain}>")
        session.command("DATA")
        session.send(b"Subject: one\r\n\r\nx" + end + smuggled + b"Subject: two\r\n\r\ny\r\n.\r\n")
        assert session.getreply()[0] == 250
        assert session.command("VRFY a").code == 502  # no reply to what was smuggled came before
    (message,) = mailbox.fetch_when(1)
    assert message.original_to == f"a@{domain}"
    assert b"Subject: two" in message.sent
