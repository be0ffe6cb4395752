"""What an operator does to the queue and to the packages loses no mail, and opens no way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host

from faults import OUTSIDE, services_that_send
from platform_stub import StubClient
from probes import Message, Mx, eventually

MESSAGES = 6
RECIPIENTS = 4
SENDERS = ("", "Joe.Q=x@isp.example", "fbl@isp.example")
ON_THE_QUEUE = {
    "requeued": ["postsuper -r ALL"],
    "requeued twice": ["postsuper -r ALL", "postqueue -f", "postsuper -r ALL"],
    "held and released": ["postsuper -h ALL", "postsuper -H ALL"],
    "held and requeued": ["postsuper -h ALL", "postsuper -r ALL"],
}
# What pickup may take is executable; a crash can leave other files there.
QUEUED = "postqueue -j && find /var/spool/postfix/maildrop -type f -perm -u+x"


@pytest.mark.parametrize("steps", ON_THE_QUEUE.values(), ids=list(ON_THE_QUEUE))
def test_whole_queue_handled(
    host: Host, mailbox: Mx, platform: StubClient, domain: str, steps: list[str]
) -> None:
    """Mail that waits for Dovecot is delivered afterwards, with its envelope and its bytes."""
    platform.answer(domain, "allow")
    sent: dict[str, tuple[str, bytes]] = {}
    host.check_output("systemctl stop dovecot")
    try:
        with mailbox.smtp() as session:
            for number in range(MESSAGES):
                sender = SENDERS[number % len(SENDERS)]
                # Postfix would add to such headers, were it mail of its own host.
                data = (
                    b"Received: from a.example by b.example; Mon, 1 Jan 2026 00:00:00 +0000\r\n"
                    b"to: Someone <a@b>\r\nSUBJECT:  %d\r\n\r\n.\r\n\xff\xfe\r\n" % number
                )
                session.command(f"MAIL FROM:<{sender}>")
                for recipient in range(RECIPIENTS):
                    to = f"Bounce+{number}-{recipient}=Joe=isp.example@{domain}"
                    sent[to] = f"<{sender}>", data
                    assert session.command(f"RCPT TO:<{to}>").code == 250
                assert session.message(data).code == 250
        waits_for_dovecot(host)
        for step in steps:
            host.check_output(step)
    finally:
        host.check_output("systemctl start dovecot")
    host.check_output("postqueue -f")
    found = eventually(mailbox.fetch, lambda seen: len(seen) >= len(sent), 120)
    assert sorted(message.original_to for message in found) == sorted(sent)
    assert {message.original_to: envelope_and_bytes(message) for message in found} == sent
    eventually(lambda: host.check_output(QUEUED), lambda seen: seen == "")


def waits_for_dovecot(host: Host) -> None:
    """Wait until each message has been tried."""
    eventually(
        lambda: host.check_output("postqueue -j").count('"delay_reason"'),
        lambda deferred: deferred == MESSAGES * RECIPIENTS,
    )


def envelope_and_bytes(message: Message) -> tuple[str, bytes]:
    """The envelope sender, and what is below our own headers."""
    return message.return_path, message.sent


def test_packages_configured_anew_open_no_way_out(
    host: Host, mailbox: Mx, platform: StubClient, domain: str, smtp_attempts: Callable[[], int]
) -> None:
    """Debian 12 puts an SMTP client into master.cf when it finds none under the name `relay`."""
    platform.answer(domain, "allow")
    before = smtp_attempts()
    host.check_output("dpkg-reconfigure --frontend=noninteractive postfix dovecot-core supervisor")
    assert services_that_send(host.check_output("postconf -M")) == []
    tried = host.run(f"timeout 5 bash -c ': < /dev/tcp/{OUTSIDE}/25'")
    assert "Connection refused" in tried.stderr
    eventually(lambda: host.run("ss -Hlnt sport = :25").stdout)
    assert mailbox.send(f"a@{domain}", b"Subject: x\r\n\r\nx\r\n").code == 250
    assert mailbox.fetch_when(1)[0].original_to == f"a@{domain}"
    assert smtp_attempts() == before


def test_pcre_package_being_upgraded_defers_nobody(
    host: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    """Debian 12 takes `pcre` out of the map types for as long as that lasts."""
    platform.answer(domain, "allow")
    host.check_output("sed -i.kept /pcre/d /etc/postfix/dynamicmaps.cf")
    try:
        host.check_output("systemctl restart postfix")
        assert mailbox.send(f"a@{domain}", b"Subject: x\r\n\r\nx\r\n").code == 250
    finally:
        host.check_output("cd /etc/postfix && mv dynamicmaps.cf.kept dynamicmaps.cf")
    assert mailbox.fetch_when(1)[0].original_to == f"a@{domain}"
