"""A changed variable changes what it must; a broken one changes nothing; a run repairs the host."""

from __future__ import annotations

import imaplib
import re
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from faults import APT, MESSAGE
from platform_stub import StubClient
from probes import Mx, eventually

MEBIBYTE = 1024 * 1024
MASTERS = "systemctl show --property MainPID --value dovecot; cat /var/spool/postfix/pid/master.pid"


def processes(host: Host) -> tuple[str, str]:
    """Process numbers of the services' masters and of the validator."""
    return host.check_output(MASTERS), host.check_output("supervisorctl pid mx-validator")


def works(mx: Mx, platform: StubClient, domain: str) -> None:
    """Mail for an authorised domain comes through, for a foreign one it does not."""
    platform.answer(domain, "allow")
    mx.empty()
    assert mx.send(f"a@{domain}", MESSAGE).code == 250
    assert mx.fetch_when(1)[0].original_to == f"a@{domain}"
    assert mx.rcpt(f"a@foreign.{domain}").code == 554


def test_message_size_changes_one_file_and_reloads_one_service(
    host: Host, mx: Mx, site: Callable[..., Any]
) -> None:
    before = processes(host)
    for limit, arguments, extra in (
        # As it comes from a command line: a string.
        (10 * MEBIBYTE, (), {"postfix_message_size_limit": str(10 * MEBIBYTE)}),
        (50 * MEBIBYTE, ("--tags=postfix",), {}),
    ):
        run = site(*arguments, **extra)
        assert run.changed == {
            "postfix : configure | Render main.cf",
            "service : Load the files of postfix",
        }
        assert mx.size_offered() == limit
        assert processes(host) == before


def test_many_changes_at_once_and_back(
    host: Host, mx: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    before = processes(host)
    key = host.check_output("openssl pkey -in /etc/oempro-mx/tls/mx.pem -pubout")
    changed = Mx(mx.address, "renamed.example.com", "fetcher", "another: long $ password")
    run = site(
        check=False,  # all is done; then the run says that the platform refuses the new key
        mx_hostname=changed.hostname,
        catchall_username=changed.username,
        catchall_password=changed.password,
        oempro_admin_api_key="another-API-key",
        dovecot_protocols=["imap", "imaps"],
        postfix_extra_parameters={"smtpd_reject_footer": "Ask the postmaster"},
    )
    assert "the API key is refused" in run.said
    assert changed.password not in run.output
    assert "another-API-key" not in run.output

    # The user: the new one opens the same mailbox, the old one is refused.
    assert eventually(changed.count, lambda seen: seen >= 0) >= 0
    with pytest.raises(imaplib.IMAP4.error, match=r"(?i)authentication failed"):
        mx.count()
    # The name: in the certificate, with the same key, and in what is accepted.
    certificate = ssl.get_server_certificate((mx.address, 993))
    names = host.check_output("echo %s | openssl x509 -noout -ext subjectAltName", certificate)
    assert "renamed.example.com" in names
    assert host.check_output("openssl pkey -in /etc/oempro-mx/tls/mx.pem -pubout") == key
    assert changed.rcpt("abuse@renamed.example.com").code == 250
    # The protocols: POP3S is gone, IMAP is there and wants STARTTLS before the password.
    with pytest.raises(ConnectionRefusedError):
        changed.fetch_pop3()
    with imaplib.IMAP4(mx.address) as session:
        assert "LOGINDISABLED" in session.capabilities
        with pytest.raises(imaplib.IMAP4.error):
            session.login(changed.username, changed.password)
    # The further parameter.
    assert "Ask the postmaster" in changed.rcpt(f"nobody@{changed.hostname}").text
    # The key: the platform refuses it, and nobody is refused for good because of that.
    platform.answer(domain, "allow")
    assert mx.rcpt(f"a@{domain}").code == 451
    assert {request["authorized"] for request in platform.requests()} == {False}

    site()
    works(mx, platform, domain)
    assert processes(host) == before  # nothing was restarted, neither there nor back
    assert site().recap["changed"] == 0


def test_password_that_looks_like_a_template(
    mx: Mx, site: Callable[..., Any], tmp_path: Path
) -> None:
    """In a file of variables, with !unsafe, as the example inventory has it."""
    changed = replace(mx, password="{{ mx }} and {% raw %}")
    variables = tmp_path / "vault.yml"
    variables.write_text(f"catchall_password: !unsafe '{changed.password}'\n")
    run = site("--tags=dovecot", f"--extra-vars=@{variables}")
    assert changed.password not in run.output
    assert changed.count() >= 0
    site("--tags=dovecot")
    assert mx.count() >= 0


def test_renamed_user_gets_the_mail(
    host: Host, mailbox: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    """What came before, what waited meanwhile and what comes after is there under the new name."""
    platform.answer(domain, "allow")
    renamed = replace(mailbox, username="fetcher")
    assert mailbox.send(f"before@{domain}", MESSAGE).code == 250
    mailbox.fetch_when(1)
    host.check_output("systemctl stop dovecot")
    assert mailbox.send(f"meanwhile@{domain}", MESSAGE).code == 250
    site("--tags=dovecot", catchall_username=renamed.username)
    assert mailbox.send(f"after@{domain}", MESSAGE).code == 250
    host.check_output("postqueue -f")
    found = {message.original_to for message in renamed.fetch_when(3)}
    assert found == {f"before@{domain}", f"meanwhile@{domain}", f"after@{domain}"}
    assert {message.original_to for message in renamed.fetch_pop3()} == found
    site("--tags=dovecot")
    assert mailbox.count() == 3


def test_wrong_value_is_named_and_changes_nothing_that_runs(
    host: Host, mx: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    """What only Postfix can judge; the rest is the preflight's, and tested by its own scenario."""
    before = processes(host)
    wrong = {"postfix_extra_parameters": {"no_such_parameter": "1"}}
    run = site("--tags=postfix", check=False, **wrong)
    assert run.status != 0
    assert "no_such_parameter" in run.output
    assert processes(host) == before
    works(mx, platform, domain)
    # By the script that has refused it: a value that Postfix would complain of at each start.
    host.check_output("cd /run && cp /etc/postfix/main.cf . && echo smtpd_timeout=soon >> main.cf")
    done = host.run("/usr/local/lib/oempro-mx/check-postfix-file /run/main.cf main.cf")
    assert done.rc != 0
    assert "smtpd_timeout" in done.stdout + done.stderr


def test_main_cf_that_was_edited_by_hand_is_put_right(
    host: Host, mx: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    host.check_output("postconf -e no_such_parameter=1 smtpd_timeout=soon")
    site("--tags=postfix")
    works(mx, platform, domain)
    assert site("--tags=postfix").recap["changed"] == 0


DAMAGE = (
    "systemctl disable --now postfix dovecot supervisor",
    f"{APT} purge dovecot-pop3d",
    "rm /opt/mx-validator/current/mx_validator/__main__.py",
    "rm -r /etc/mx-validator /var/lib/oempro-mx",
    "rm -rf /etc/systemd/system/supervisor.service.d /etc/dovecot/users",
    ": > /etc/postfix/main.cf",
    "echo garbage > /etc/dovecot/dovecot.conf",
    "cd /etc/oempro-mx/tls && : > selfsigned/chain.pem && : > mx.pem",
)


def test_run_repairs_what_a_half_finished_one_left(
    host: Host, mx: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    host.check_output("set -e; " + "; ".join(DAMAGE))
    site()
    works(mx, platform, domain)
    mx.fetch_pop3()
    enabled = host.check_output("systemctl is-enabled postfix dovecot supervisor").split()
    assert enabled == ["enabled"] * 3
    assert site().recap["changed"] == 0


def test_a_further_package(host: Host, site: Callable[..., Any]) -> None:
    """One is added without naming the others; it is installed once."""
    further = {"base_extra_packages": ["tree"]}
    run = site("--tags=base_packages", **further)
    assert run.changed == {"base : packages | Install the missing packages"}
    assert host.package("tree").is_installed
    assert site("--tags=base_packages", **further).recap["changed"] == 0
    host.check_output(f"{APT} purge tree")


def test_failure_with_a_secret_in_hand_says_why(
    host: Host, site: Callable[..., Any], variables: dict[str, Any]
) -> None:
    """The value stays hidden, the reason does not."""
    files = {
        "validator": ("/etc/mx-validator/api-key", "configure | Install the API key"),
        "dovecot": ("/etc/dovecot/users", "mailbox | Render the password file"),
    }
    for role, (path, task) in files.items():
        host.check_output("mv %s %s.away && mkdir %s", path, path, path)
        try:
            run = site(f"--tags={role}", check=False)
        finally:
            host.check_output("rmdir %s && mv %s.away %s", path, path, path)
        assert run.status != 0
        assert f"{task}: can not use content with a dir as dest" in run.said
        for secret in ("oempro_admin_api_key", "catchall_password"):
            assert variables[secret] not in run.output
    for replacement, reason in (
        ("rm -f", "mailbox . Hash the password: .*openssl: not found"),
        ("install -m 755 /bin/true", "cannot log in with the password of the inventory"),
    ):
        host.check_output("cd /usr/bin && mv openssl openssl.away")
        try:
            host.check_output(f"cd /usr/bin && {replacement} openssl")
            run = site("--tags=dovecot", check=False)
        finally:
            host.check_output("cd /usr/bin && mv openssl.away openssl")
        assert run.status != 0
        assert re.search(reason, run.said)
        assert variables["catchall_password"] not in run.output
    site("--tags=dovecot")
