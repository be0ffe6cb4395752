"""What real mail servers send arrives, with its envelope and the bytes that they were given."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from platform_stub import StubClient
from probes import Mx
from sending import Sender, msmtp

# Whatever a sending server would put in is there already.
COMMON = (
    "From: joe@isp.example\r\nTo: reply@ours.example\r\nMessage-ID: <1@isp.example>\r\n"
    "Date: Tue, 24 Nov 2026 22:00:00 +0000\r\n"
)
RAW_HEADER = "Subject: Réponse automatique\r\n\r\nx\r\n"
MIME = "MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n"
EIGHT_BIT = "Subject: x\r\nContent-Type: text/plain; charset=utf-8\r\n" + MIME + "\r\nGrüße\r\n"
# A delivery status notification about mail to an address outside ASCII (RFC 6533).
GLOBAL_DSN = (
    "Subject: Undelivered\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report;"
    ' report-type="global-delivery-status"; boundary="B"\r\n\r\n'
    "--B\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    "用户@例子.广告 is unknown.\r\n"
    "--B\r\nContent-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    "Reporting-MTA: dns; mx.isp.example\r\n\r\nFinal-Recipient: utf-8; 用户@例子.广告\r\n"
    "Action: failed\r\nStatus: 5.1.1\r\n\r\n"
    "--B\r\nContent-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    "Subject: Grüße\r\n\r\n--B--\r\n"
)


@dataclass(frozen=True)
class Mail:
    """A message and its envelope."""

    sender: str
    recipient: str  # with the number of the message and the domain to be filled in
    data: str
    return_path: str  # what is stored of the sender

    @property
    def envelope(self) -> str:
        return self.sender + self.recipient


MAILS = {
    "raw header, null sender": Mail("", "reply+{}@{}", RAW_HEADER, "<>"),
    "raw header": Mail("joe@isp.example", "reply+{}@{}", RAW_HEADER, "<joe@isp.example>"),
    "8-bit body": Mail("", "reply+{}@{}", EIGHT_BIT, "<>"),
    "DSN of RFC 6533": Mail("", "reply+{}@{}", GLOBAL_DSN, "<>"),
    "A-label": Mail("", "reply+{}@xn--bcher-kva.{}", RAW_HEADER, "<>"),
    "U-label": Mail("", "reply+{}@bücher.{}", RAW_HEADER, "<>"),
    "recipient": Mail("joe@isp.example", "jürgen+{}@{}", RAW_HEADER, "<joe@isp.example>"),
    "sender's domain": Mail(
        "joe@bücher.example", "reply+{}@{}", RAW_HEADER, "<joe@xn--bcher-kva.example>"
    ),
    "sender": Mail(
        "用户@例子.广告",
        "reply+{}@{}",
        RAW_HEADER,
        "<=E7=94=A8=E6=88=B7=40=E4=BE=8B=E5=AD=90.=E5=B9=BF=E5=91=8A@smtputf8.invalid>",
    ),
    "everything": Mail(
        "jörg@isp.example",
        "jürgen+{}@bücher.{}",
        GLOBAL_DSN,
        "<j=C3=B6rg=40isp.example@smtputf8.invalid>",
    ),
}

POSTFIX = ("sender-postfix-bookworm", "sender-postfix-trixie")
# By which ways each takes an envelope outside ASCII itself.
OUTSIDE_ASCII = {
    "sender-postfix-bookworm": ("sendmail", "submit"),
    "sender-postfix-trixie": ("sendmail", "submit"),
    "sender-exim": ("sendmail",),
    "sender-opensmtpd": (),
}


def test_all_of_it_arrives(mailbox: Mx, platform: StubClient, domain: str, sender: Sender) -> None:
    platform.answer(domain, "allow")
    platform.answer(f"xn--bcher-kva.{domain}", "allow")
    sent: dict[str, tuple[str, Mail]] = {}
    for name, mail in MAILS.items():
        for way, hand_over in (("sendmail", sender.sendmail), ("submit", sender.submit)):
            if mail.envelope.isascii() or way in OUTSIDE_ASCII[sender.name]:
                recipient = mail.recipient.format(len(sent), domain)
                reply = hand_over(mail.sender, recipient, (COMMON + mail.data).encode())
                assert reply.code == 250, (name, way, reply)
                sent[recipient] = (f"{name}, {way}", mail)
    found = {message.original_to: message for message in mailbox.fetch_when(len(sent))}
    assert set(found) == set(sent)
    for recipient, (name, mail) in sent.items():
        assert found[recipient].return_path == mail.return_path, name
        assert found[recipient].sent.endswith((COMMON + mail.data).encode()), name
    assert mailbox.count() == len(sent)


def test_client_that_is_no_mail_server(mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    data = (COMMON + EIGHT_BIT).encode()
    reply = msmtp(mailbox, "joe@isp.example", f"reply@{domain}", data)
    assert reply.code == 250, reply
    (message,) = mailbox.fetch_when(1)
    assert (message.return_path, message.original_to) == ("<joe@isp.example>", f"reply@{domain}")
    assert message.sent.endswith(data)
    refused = msmtp(mailbox, "joe@isp.example", f"reply@foreign.{domain}", data)
    assert "554 5.7.1" in refused.text


@pytest.mark.parametrize("sender", POSTFIX, indirect=True)
def test_a_bounce_about_mail_outside_ascii_arrives(
    mailbox: Mx, platform: StubClient, domain: str, sender: Sender
) -> None:
    """The sending server makes the DSN itself: nobody at the recipient's domain takes the mail."""
    platform.answer(f"xn--bcher-kva.{domain}", "allow")
    verp = f"jürgen+42=用户@bücher.{domain}"
    assert sender.sendmail(verp, "用户@localhost", (COMMON + RAW_HEADER).encode()).code == 250
    (message,) = mailbox.fetch_when(1)
    assert (message.return_path, message.original_to) == ("<>", verp)
    assert b"\r\nContent-Type: message/global-delivery-status\r\n" in message.sent
    assert "\r\nFinal-Recipient: utf-8; 用户@localhost\r\n".encode() in message.sent
