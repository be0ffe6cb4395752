"""Secrets stay where they belong, and the daemon can do no more than it must."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

from probes import Mx, eventually

SECRETS = ("oempro_admin_api_key", "catchall_password")
PORTS = ("22", "25", "993", "995")


def pattern_of(secret: str) -> str:
    """Return a pattern that does not match the command line that looks for it."""
    return f"[{secret[0]}]{secret[1:]}"


@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_in_no_log_and_no_command_line(
    host: Host, variables: dict[str, Any], name: str
) -> None:
    pattern = pattern_of(variables[name])
    assert host.run("grep -r -l -e %s /var/log", pattern).stdout == ""
    assert host.run("journalctl --no-pager | grep -e %s", pattern).rc == 1
    found = host.run("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | grep -a -e %s", pattern)
    assert found.rc == 1


@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_in_no_file_that_others_read(
    host: Host, variables: dict[str, Any], name: str
) -> None:
    found = host.run(
        "find /etc /opt /run /usr/local /var -xdev -type f -perm /o+r -exec grep -l -e %s {} +",
        pattern_of(variables[name]),
    )
    assert found.stdout == ""


def test_password_is_stored_as_a_hash_only(host: Host, variables: dict[str, Any]) -> None:
    users = host.file("/etc/dovecot/users")
    assert users.content_string.startswith("catchall:{SHA512-CRYPT}$6$")
    found = host.run("grep -r -l -e %s /etc /var", pattern_of(variables["catchall_password"]))
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("path", "owner", "group", "mode"),
    [
        ("/etc/mx-validator", "root", "mx-validator", 0o750),
        ("/etc/mx-validator/api-key", "root", "mx-validator", 0o640),
        ("/etc/mx-validator/mx-validator.conf", "root", "mx-validator", 0o640),
        ("/etc/dovecot/users", "root", "dovecot", 0o640),
        ("/etc/oempro-mx/tls/mx.pem", "root", "root", 0o600),
        ("/etc/oempro-mx/tls/selfsigned/key.pem", "root", "root", 0o600),
        ("/var/spool/postfix/mx-validator", "mx-validator", "postfix", 0o2750),
        ("/var/spool/postfix/mx-validator/policy", "mx-validator", "postfix", 0o660),
        ("/var/vmail/catchall", "vmail", "vmail", 0o700),
    ],
)
def test_owner_and_mode(host: Host, path: str, owner: str, group: str, mode: int) -> None:
    found = host.file(path)
    assert (found.user, found.group, oct(found.mode)) == (owner, group, oct(mode))


def test_daemon_has_no_privileges(host: Host) -> None:
    pid = host.check_output("supervisorctl pid mx-validator")
    status = host.check_output(f"cat /proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {host.check_output("id -u mx-validator")}
    assert int(fields["CapEff"], 16) == 0
    groups = host.check_output("id -nG mx-validator").split()
    assert groups == ["mx-validator"]


def test_daemon_cannot_write_its_own_code(host: Host) -> None:
    found = host.run(
        "cd / && setpriv --reuid=mx-validator --regid=mx-validator --init-groups "
        "find /opt /etc /usr /var -xdev -writable \\( -type f -o -type d \\)"
    )
    # Where its socket is, and what it knows.
    own = ("/var/spool/postfix/mx-validator", "/var/lib/mx-validator")
    writable = {path for path in found.stdout.splitlines() if not path.startswith(own)}
    assert writable <= {"/var/tmp"}


def test_what_listens(host: Host) -> None:
    """Port by port: nothing else can be reached from outside, and nothing else runs."""
    listening = {
        (*line.split()[3].rsplit(":", 1), line.split('"')[1])
        for line in host.check_output("ss -Hlntp").splitlines()
    }
    everywhere = {(address, port) for address in ("0.0.0.0", "[::]") for port in PORTS}
    assert {(address, port) for address, port, _ in listening} == {
        *everywhere,
        ("127.0.0.1", "9854"),  # the validator's metrics
    }
    assert host.check_output("ss -Hlnup") == ""
    assert {program for _, port, program in listening if port in ("993", "995")} <= {
        *("dovecot", "imap-login", "pop3-login")
    }


def test_password_is_welcome_under_tls(mx: Mx) -> None:
    with mx.imap() as session:
        assert "LOGINDISABLED" not in session.capabilities


def test_wrong_password_is_refused(mx: Mx) -> None:
    wrong = Mx(mx.address, mx.hostname, mx.username, "wrong" + mx.password)
    with pytest.raises(Exception, match=r"(?i)authentication failed"), wrong.imap():
        pass
    eventually(mx.count, lambda seen: seen >= 0)
