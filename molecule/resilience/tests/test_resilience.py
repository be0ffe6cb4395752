"""Kill it, stop it, reboot it: nothing accepted is lost, nothing authorised is refused."""

from __future__ import annotations

import contextlib
import imaplib

import pytest
from testinfra.host import Host

from faults import MESSAGE, SENDERS, Flow, rebooted
from platform_stub import StubClient
from probes import Mx, eventually

QUEUE_SECONDS = 300  # until queued mail is tried again without anybody's help


@pytest.fixture
def allowed(platform: StubClient, domain: str) -> str:
    """A domain that the platform confirms."""
    platform.answer(domain, "allow")
    return domain


def validators(host: Host) -> list[str]:
    """Process numbers of the validators that run."""
    found: list[str] = host.run("pgrep -u mx-validator").stdout.split()
    return found


def recipients(mx: Mx, accepted: set[str], seconds: float = 120) -> set[str]:
    """Wait until all accepted mail is there; return whom all mail is for.

    A delivery that was cut off comes twice.
    """

    def fetched() -> set[str]:
        # A login in the moment of a reload may be handed to a process that ends.
        with contextlib.suppress(imaplib.IMAP4.abort):
            return {message.original_to for message in mx.fetch()}
        return set()

    return eventually(fetched, lambda seen: accepted <= seen, seconds)


def test_validator_killed(host: Host, mx: Mx, allowed: str) -> None:
    (old,) = validators(host)
    host.check_output(f"kill -9 {old}")
    # Postfix asks again for some seconds, Supervisor needs less: the sender notices nothing.
    assert mx.rcpt(f"a@{allowed}").code == 250
    (new,) = validators(host)
    assert new != old


def test_supervisord_killed(host: Host, mx: Mx, allowed: str) -> None:
    (old,) = validators(host)
    daemon = host.check_output("systemctl show --property MainPID --value supervisor")
    host.check_output(f"kill -9 {daemon}")
    new = eventually(lambda: validators(host), lambda seen: len(seen) == 1 and seen != [old])
    assert host.check_output("pgrep -c -x supervisord") == "1"
    assert mx.rcpt(f"a@{allowed}").code == 250
    assert validators(host) == new
    # It is the copy that Supervisor knows, and it stays.
    assert host.check_output("supervisorctl pid mx-validator") == new[0]


def test_second_copy_is_refused(host: Host, mx: Mx, allowed: str) -> None:
    done = host.run(
        "timeout 30 setpriv --reuid=mx-validator --regid=mx-validator --init-groups "
        "mx-validator serve"
    )
    assert done.rc == 73, done  # EX_CANTCREAT
    assert "policy" in done.stderr
    assert mx.rcpt(f"a@{allowed}").code == 250


@pytest.mark.parametrize(
    "command", ["supervisorctl restart mx-validator", "pkill -9 -u mx-validator"]
)
def test_validator_restarts_while_mail_flows(
    host: Host, mailbox: Mx, allowed: str, command: str
) -> None:
    with Flow(mailbox, allowed) as flow:
        for _ in range(3):
            flow.wait_for(SENDERS * 3)
            host.check_output(command)
        flow.wait_for(SENDERS * 3)
    assert set(flow.replies) == {250}
    assert recipients(mailbox, flow.accepted) == flow.accepted


def test_dovecot_stopped(host: Host, mailbox: Mx, allowed: str) -> None:
    host.check_output("systemctl stop dovecot")
    try:
        with Flow(mailbox, allowed) as flow:
            flow.wait_for(100)
        assert set(flow.replies) == {250}
        # A message is not seen while it moves from one folder of the queue to the next.
        eventually(
            lambda: len(host.check_output("postqueue -j").splitlines()),
            lambda queued: queued == len(flow.accepted),
        )
    finally:
        host.check_output("systemctl start dovecot")
    assert recipients(mailbox, flow.accepted, QUEUE_SECONDS) == flow.accepted
    assert host.check_output("postqueue -j") == ""


def test_reload_while_mail_flows(host: Host, mailbox: Mx, allowed: str) -> None:
    with Flow(mailbox, allowed) as flow:
        for service in ("postfix", "dovecot", "postfix", "dovecot"):
            flow.wait_for(SENDERS * 2)
            host.check_output(f"systemctl reload {service}")
        flow.wait_for(SENDERS * 2)
    assert set(flow.replies) == {250}
    assert recipients(mailbox, flow.accepted, QUEUE_SECONDS) == flow.accepted


def test_reboot(host: Host, mailbox: Mx, allowed: str) -> None:
    host.check_output("systemctl stop dovecot")  # so that some mail is in the queue
    with Flow(mailbox, allowed) as flow:
        flow.wait_for(SENDERS * 2)
        with rebooted(host):
            pass
        flow.wait_for(SENDERS * 2)
    # While it comes up a sender may be told to try again, never to give up.
    assert set(flow.replies) <= {250, 451}
    # A message whose 250 was cut off is there, too: its sender tries it again.
    assert recipients(mailbox, flow.accepted, QUEUE_SECONDS) >= flow.accepted
    assert len(validators(host)) == 1
    for service in ("postfix", "dovecot", "supervisor"):
        assert host.service(service).is_running
        assert host.service(service).is_enabled
    assert host.check_output("systemctl --failed --no-legend") == ""


def test_postfix_starts_after_a_crash(host: Host, mailbox: Mx, allowed: str) -> None:
    """A crash leaves half-written queue files; clearing them up must not stop Postfix."""
    host.check_output("systemctl stop postfix")
    host.check_output("install -o postfix -m 600 /dev/null /var/spool/postfix/incoming/123456.7890")
    host.check_output("systemctl start postfix")
    eventually(lambda: host.run("ss -Hlnt sport = :25").stdout)
    assert mailbox.send(f"a@{allowed}", MESSAGE).code == 250
    assert mailbox.fetch_when(1)[0].original_to == f"a@{allowed}"
