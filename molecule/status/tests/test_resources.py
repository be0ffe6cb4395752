"""What runs out: room, inodes, a certificate's life, processor time, and what must be updated."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from ca import self_signed
from faults import APT
from findings import Status, found
from platform_stub import StubClient
from probes import Mx, eventually

QUEUE = "/var/spool/postfix"
SAMPLES = "/run/oempro-mx-space.json"
CERTIFICATE = "/etc/oempro-mx/tls/mx.pem"
STORE_FOLDER = "/var/lib/mx-validator"

# A package, and a newer one among Debian's security updates.
UPDATE = r"""
mkdir -p /srv/updates && cd /srv/updates && . /etc/os-release
for version in 1 2; do
    mkdir -p $version/DEBIAN
    cat > $version/DEBIAN/control <<END
Package: mx-test-package
Version: $version
Architecture: all
Maintainer: Test <test@example.com>
Description: a package of a test
END
    dpkg-deb --build $version mx-test-package_$version.deb
done
dpkg --install mx-test-package_1.deb
{
    dpkg-deb --field mx-test-package_2.deb
    echo "Filename: ./mx-test-package_2.deb"
    echo "Size: $(stat --format %s mx-test-package_2.deb)"
    echo "SHA256: $(sha256sum < mx-test-package_2.deb | cut -c 1-64)"
} > Packages
cat > Release <<END
Origin: Debian
Label: Debian-Security
Suite: stable-security
Codename: $VERSION_CODENAME-security
SHA256:
 $(sha256sum < Packages | cut -c 1-64) $(stat --format %s Packages) Packages
END
echo 'deb [trusted=yes] file:/srv/updates ./' > /etc/apt/sources.list.d/mx-test.list
"""


@pytest.mark.usefixtures("well")
def test_disk_that_fills(host: Host, status: Callable[[], Status]) -> None:
    """It will be full before tomorrow, going on as in the last quarter of an hour."""
    host.check_output(f"rm -f {SAMPLES}")
    status()
    samples = json.loads(host.check_output(f"cat {SAMPLES}"))
    earlier = {path: [[when - 900, free] for when, free in seen] for path, seen in samples.items()}
    host.check_output(f"printf %s {shlex.quote(json.dumps(earlier))} > {SAMPLES}")
    host.check_output(f"fallocate --length 300M {QUEUE}/large")
    finding = found(status, f"disk {QUEUE}", "WARN", "full in ")
    assert QUEUE in host.check_output(finding["remedy"])
    host.check_output(f"rm {QUEUE}/large")


@pytest.mark.usefixtures("well")
def test_no_inodes(
    host: Host, mx: Mx, status: Callable[[], Status], platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    inodes = host.check_output(f"df --output=itotal {QUEUE} | tail -n 1").strip()
    used = int(host.check_output(f"df --output=iused {QUEUE} | tail -n 1"))
    host.check_output(f"mount -o remount,nr_inodes={used + 1} {QUEUE}")
    finding = found(status, "inodes", "FAIL", "every sender is told 452")
    assert eventually(lambda: mx.rcpt(f"a@{domain}"), lambda seen: seen.code == 452)
    assert QUEUE in host.check_output(finding["remedy"])
    found(status, f"disk {QUEUE}", "FAIL", "every sender is told 452")
    host.check_output(f"mount -o remount,nr_inodes={inodes} {QUEUE}")


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(
    ("days_left", "state", "words"), [(10, "WARN", "it ends in"), (-1, "FAIL", "it ended")]
)
def test_life_of_the_certificate(
    host: Host,
    mx: Mx,
    status: Callable[[], Status],
    site: Callable[..., Any],
    days_left: int,
    state: str,
    words: str,
) -> None:
    aged = self_signed(mx.hostname, days_ago=80, days_left=days_left)
    host.check_output(f"printf %s {shlex.quote(aged)} > {CERTIFICATE}")
    finding = found(status, "certificate", state, words)
    assert finding["remedy"].endswith(" --tags tls,dovecot,postfix")
    site("--tags=tls,dovecot,postfix")


@pytest.mark.usefixtures("well")
def test_known_good_domains_that_cannot_be_written(
    host: Host,
    mx: Mx,
    status: Callable[[], Status],
    platform: StubClient,
    domain: str,
) -> None:
    """Somebody has put the file back from a copy, as root."""
    host.check_output("supervisorctl stop mx-validator")
    host.check_output(f"chown --recursive root: {STORE_FOLDER}")
    host.check_output("supervisorctl start mx-validator")
    platform.answer(domain, "allow")
    eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code == 250)
    finding = found(status, "known good", "FAIL", "1 domains are not on disk: ")
    host.check_output(finding["remedy"])


@pytest.mark.usefixtures("well")
def test_late_event_loop(host: Host, status: Callable[[], Status]) -> None:
    """The validator gets the processor for half a second now and then."""
    pid = host.check_output("supervisorctl pid mx-validator").strip()
    starve = f"while kill -STOP {pid}; do sleep 2; kill -CONT {pid}; sleep 0.5; done"
    host.check_output(f"systemd-run --unit=starve sh -c '{starve}'")
    try:
        finding = found(status, "validator", "WARN", "s late: the host is too busy")
    finally:
        host.check_output(f"systemctl stop starve; kill -CONT {pid}")
    host.check_output(finding["remedy"])


@pytest.mark.usefixtures("well")
def test_security_updates(host: Host, status: Callable[[], Status]) -> None:
    host.check_output(UPDATE)
    host.check_output(
        f"{APT} -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/mx-test.list"
        " -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 update"
    )
    host.check_output("rm -f /var/lib/apt/periodic/unattended-upgrades-stamp")
    finding = found(status, "updates", "WARN", "security updates wait, and no nightly upgrade")
    host.check_output(finding["remedy"])
    assert host.check_output("dpkg-query --show mx-test-package").split()[1] == "2"
    found(status, "updates", "OK", "0 security updates wait")
    host.check_output(
        f"{APT} purge mx-test-package; rm -r /srv/updates /etc/apt/sources.list.d/mx-test.list"
    )
