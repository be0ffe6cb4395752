"""The host itself: its clock, Debian's updates, and the version of the roles."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from oempro_mx import __version__
from oempro_mx.commands import run, run_any
from oempro_mx.model import Finding, ok, warn
from oempro_mx.settings import Settings

REBOOT = Path("/run/reboot-required")
UPGRADED = Path("/var/lib/apt/periodic/unattended-upgrades-stamp")  # touched each night
VERSION = Path("/var/lib/oempro-mx/version")
UPGRADE_SECONDS = 2 * 86400


def clock(_: Settings) -> Iterator[Finding]:
    """Ask the kernel whether a time daemon keeps its clock."""
    container = run_any("systemd-detect-virt", "--container")[1].strip()
    if container != "none":
        yield ok("clock", f"kept by the machine that runs this container ({container})")
    elif "NTPSynchronized=yes" in run("timedatectl", "show").splitlines():
        yield ok("clock", "synchronised")
    else:
        yield warn("clock", "not synchronised with any server", "timedatectl set-ntp true")


def updates(_: Settings, reboot: Path = REBOOT, upgraded: Path = UPGRADED) -> Iterator[Finding]:
    """Count what the nightly upgrade should have installed."""
    listed = run("apt-get", "--simulate", "--quiet", "dist-upgrade")
    waiting = len(re.findall(r"(?m)^Inst .*security", listed, re.IGNORECASE))
    by_night = upgraded.exists() and time.time() - upgraded.stat().st_mtime < UPGRADE_SECONDS
    seen = f"{waiting} security updates wait"
    if waiting and not by_night:
        yield warn("updates", f"{seen}, and no nightly upgrade has run", "unattended-upgrade")
    else:
        yield ok("updates", seen)
    if reboot.exists():
        yield warn("updates", "an update needs a reboot", "systemctl reboot")


def version(settings: Settings, file: Path = VERSION) -> Iterator[Finding]:
    """Compare the version of the last whole run with this command's."""
    try:
        recorded = file.read_text().strip()
    except FileNotFoundError:
        yield warn("version", "no whole run has ended on this host", settings.playbook)
        return
    if recorded == __version__:
        yield ok("version", f"Oempro MX {recorded}")
    else:
        seen = f"the last whole run was of {recorded}, this command is of {__version__}"
        yield warn("version", seen, settings.playbook)
