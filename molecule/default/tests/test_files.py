"""What the roles write on the host is in their READMEs, all of it."""

from __future__ import annotations

import re
from pathlib import Path

from testinfra.host import Host

from platform_stub import StubClient
from probes import Mx, eventually

STORE = "/var/lib/mx-validator/known-good.sqlite"
ROLES = Path(__file__).resolve().parents[3] / "roles"
# Everything that is newer than the end of the transaction that installed Postfix and the others;
# dpkg's last triggers may have run in the second that it names.
WRITTEN = r"""
end=$(awk '/^Install:.* postfix:/ {ours = 1} ours && /^End-Date:/ {print $2, $3; exit}' \
    /var/log/apt/history.log)
test -n "$end" &&
find /boot /etc /home /opt /root /srv /usr /var -xdev -newermt "$end 1 second" ! -type d -print
"""
# What Debian's programs write when they run, where users and groups are listed, and what a copy of
# a test host is given.
FROM_DEBIAN = re.compile(
    r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$"
    r"|/var/(backups|cache|tmp)/|/var/lib/(apt|dovecot|dpkg|logrotate|postfix|systemd)/"
    r"|/var/log/(apt|journal|supervisor|unattended-upgrades)/|/var/log/(dpkg|alternatives)\.log$"
    r"|/var/log/(btmp|wtmp(\.db)?|lastlog)$|/var/spool/postfix/(?!dovecot/|mx-validator/)"
    r"|/(root|home/[^/]+)/\.(ansible|ssh)/"
    r"|/etc/(hosts|hostname|machine-id|resolv\.conf|sudoers\.d/admin)$"
)


def named() -> set[str]:
    """The paths in the READMEs' tables of what a role writes."""
    found: set[str] = set()
    for readme in ROLES.glob("*/README.md"):
        _, _, table = readme.read_text().partition("On the host it writes:\n")
        found.update(re.findall(r"`(/[^`]+)`", table.partition("\n## ")[0]))
    return found


def test_each_file_that_was_written_is_in_a_readme(
    host: Host, mx: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    assert mx.rcpt(f"a@{domain}").code == 250
    eventually(lambda: host.file(STORE).exists)  # the validator writes it after its answer
    written = [
        path for path in host.check_output(WRITTEN).split("\n") if not FROM_DEBIAN.match(path)
    ]
    assert {"/etc/postfix/main.cf", STORE} <= set(written)
    exact = named()
    folders = tuple(path for path in exact if path.endswith("/"))
    unnamed = [path for path in written if path not in exact and not path.startswith(folders)]
    assert not unnamed, "\n".join(unnamed)


def test_packages_of_all_roles_came_in_one_transaction(host: Host) -> None:
    history = host.check_output("cat /var/log/apt/history.log")
    (transaction,) = re.findall(r"(?m)^Install:.* postfix:.*$", history)
    for package in ("dovecot-imapd", "nftables", "python3-requests", "supervisor"):
        assert f" {package}:" in transaction
