"""After each run a service runs with what lies on disk; what it already runs with is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testinfra.host import Host

from platform_stub import StubClient
from probes import Mx, eventually

MEBIBYTE = 1024 * 1024
SIZE = 50 * MEBIBYTE
OTHER_SIZE = 20 * MEBIBYTE
LOAD = "service : Load the files of "
DROP_IN = "/etc/systemd/system/dovecot.service.d/oempro-mx.conf"


def loaded(run: Any) -> set[str]:
    """Return the services that a run has loaded."""
    return {task.removeprefix(LOAD) for task in run.changed if task.startswith(LOAD)}


def test_run_that_was_cut_off_while_the_clock_was_behind(
    host: Host, mx: Mx, site: Callable[..., Any]
) -> None:
    """The file is there, looks old, and the service has not loaded it: the next run sees that."""
    changed = {"postfix_message_size_limit": OTHER_SIZE}
    mx.size_offered()  # a process of smtpd is there that has read the old file
    site("--tags=postfix_config", **changed)
    assert mx.size_offered() == SIZE
    host.check_output("touch --date=2001-01-01 /etc/postfix/main.cf")
    assert loaded(site("--tags=postfix", **changed)) == {"postfix"}
    assert mx.size_offered() == OTHER_SIZE
    assert loaded(site("--tags=postfix")) == {"postfix"}
    assert mx.size_offered() == SIZE


def test_file_that_was_changed_loaded_and_put_back(
    host: Host, mx: Mx, site: Callable[..., Any]
) -> None:
    """On disk all is as it was at the last run, but that is not what the service runs with."""
    host.check_output(f"postconf -e message_size_limit={OTHER_SIZE} && postfix reload")
    eventually(mx.size_offered, lambda seen: seen == OTHER_SIZE)
    site("--tags=postfix_config")
    assert mx.size_offered() == OTHER_SIZE
    assert loaded(site("--tags=postfix")) == {"postfix"}
    assert mx.size_offered() == SIZE


def test_file_that_comes_and_goes_in_a_directory(host: Host, site: Callable[..., Any]) -> None:
    before = host.check_output("supervisorctl pid mx-validator")
    for command in ("install -m 644 /dev/null", "rm"):
        host.check_output(f"{command} /etc/mx-validator/somebody-elses")
        assert loaded(site("--tags=validator")) == {"validator"}
    assert loaded(site("--tags=validator")) == set()
    assert host.check_output("supervisorctl pid mx-validator") == before


def test_drop_in_is_entered_by_a_restart(host: Host, site: Callable[..., Any]) -> None:
    master = "systemctl show --property=MainPID --value dovecot"
    before = host.check_output(master)
    host.check_output(f"sed -i s/NoNewPrivileges=yes/NoNewPrivileges=no/ {DROP_IN}")
    assert loaded(site("--tags=dovecot")) == {"dovecot"}
    after = host.check_output(master)
    assert after != before
    assert "NoNewPrivs:\t1" in host.file(f"/proc/{after}/status").content_string


def test_services_that_do_not_run_are_started(
    host: Host, mailbox: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    host.check_output("supervisorctl stop mx-validator && systemctl stop dovecot postfix")
    run = site("--tags=supervisor,validator,dovecot,postfix")
    assert loaded(run) == {"validator", "dovecot", "postfix"}
    platform.answer(domain, "allow")
    assert mailbox.send(f"a@{domain}", b"Subject: x\r\n\r\nx\r\n").code == 250
    mailbox.fetch_when(1)


def test_look_reports_no_change(site: Callable[..., Any]) -> None:
    assert site("--check").recap["changed"] == 0
