"""What a test host's root file system stands on: a bare Debian, and what provisioning wrote.

A bare one is built once a week for each release. What a host has written while it was provisioned
is kept as a second layer, under a hash of all that provisioning reads: further hosts are copies of
that host, which cost seconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from shell import locked, run

CHECKOUT = Path(__file__).resolve().parents[2]
BARE = Path("/var/cache/oempro-mx-testhosts")
# On the hosts' own file system, so that a host's files become a layer by being renamed.
PROVISIONED = Path("/var/lib/oempro-mx-testhosts/provisioned")
MIRROR = os.environ.get("DEBIAN_MIRROR", "")  # empty: mmdebstrap's default

RELEASES = ("bookworm", "trixie")
# What a rented VPS has on its first day, and nothing more.
PACKAGES = "systemd,systemd-sysv,dbus,udev,python3,openssh-server,sudo,iproute2,ca-certificates"
BARE_AGE_SECONDS = 7 * 86400  # older ones lack too many security updates
LAYERS_KEPT = 3  # of each release: a layer takes about 400 MB
# Of the checkout, provisioning reads the test hosts' inventory, and everything but these, hidden
# files and documents.
NOT_READ = {"Makefile", "benchmark", "docs", "molecule", "pyproject.toml", "tests", "__pycache__"}


def bare(release: str) -> Path:
    """Return the unpacked minimal root file system of a Debian release, built if need be."""
    root = BARE / release
    stamp = built(release)
    with locked(BARE / f"{release}.lock"):
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < BARE_AGE_SECONDS
        if fresh and stamp.read_text() == PACKAGES:
            return root
        if in_use(root):
            print(f"{release}: the image is old, but in use; keeping it", file=sys.stderr)
            return root
        print(f"{release}: building the root file system (about 40 s)", file=sys.stderr)
        stamp.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
        run(*command, release, str(root), *([MIRROR] if MIRROR else []))
        # A key or an id in the image would be the same on every host.
        for each in [*root.glob("etc/ssh/ssh_host_*"), root / "etc/machine-id"]:
            each.unlink(missing_ok=True)
        stamp.write_text(PACKAGES)
        return root


def built(release: str) -> Path:
    """Return the file that was written when a bare root file system was complete."""
    return BARE / f"{release}.packages"


def layer(release: str) -> Path:
    """Return the layer of a host that this checkout, as it is, has provisioned or would."""
    digest = hashlib.sha256(str(built(release).stat().st_mtime_ns).encode())
    for path in sorted(read_by_provisioning()):
        digest.update(f"{path.relative_to(CHECKOUT)}\0{path.stat().st_mode}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return PROVISIONED / f"{release}-{digest.hexdigest()[:16]}"


def read_by_provisioning() -> Iterator[Path]:
    """Find the files of this checkout that what is on a provisioned host can depend on."""
    for top in (CHECKOUT, CHECKOUT / "molecule" / "inventory"):
        for folder, folders, files in os.walk(top):
            folders[:] = [each for each in folders if each not in NOT_READ and each[0] != "."]
            read = [each for each in files if each not in NOT_READ and each[0] != "."]
            yield from (Path(folder, each) for each in read if not each.endswith((".md", ".pyc")))


def remove_old_layers(release: str) -> None:
    """Remove the layers of a release that were not used for longest."""
    found = sorted(PROVISIONED.glob(f"{release}-*"), key=lambda path: -path.stat().st_mtime)
    for old in found[LAYERS_KEPT:]:
        if not in_use(old):
            shutil.rmtree(old)


def in_use(root: Path) -> bool:
    """Tell whether a host's overlay stands on this folder."""
    mounts = Path("/proc/mounts").read_text().splitlines()
    options = [option for line in mounts for option in line.split()[3].split(",")]
    lower = [option.removeprefix("lowerdir=") for option in options if "lowerdir=" in option]
    return any(str(root) in each.split(":") for each in lower)
