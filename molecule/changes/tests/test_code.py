"""The validator's code is switched in one step, up and down, whatever starts meanwhile."""

from __future__ import annotations

import base64
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from platform_stub import StubClient
from probes import Mx, eventually

PROJECT = Path(__file__).resolve().parents[3]
PACKAGE = Path("files/validator/src/mx_validator")
PACK = PROJECT / "roles/code/files/pack-code.py"
INSTALL = PROJECT / "roles/code/files/install-code"
LOG = "/var/log/mx-validator/mx-validator.log"
# The command is started without a pause, and the daemon killed from time to time. The command runs
# as a user who cannot leave compiled modules behind, which would make the next starts shorter.
STARTS = """
exec >> /run/starts 2>&1
while :; do setpriv --reuid=nobody --regid=mx-validator --clear-groups \
    mx-validator check-config /etc/mx-validator/mx-validator.conf && echo started
done &
while sleep 2; do pkill -9 -u mx-validator; done
"""


def packed(project: Path) -> str:
    """Return what the role sends to a host: the archive of a project's code."""
    return subprocess.check_output([sys.executable, PACK, project / "files/validator"], text=True)


def archive(project: Path) -> bytes:
    """Return the content of the archive of a project's code."""
    return gzip.decompress(base64.b64decode(packed(project)))


def copy_of_the_project(directory: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "__pycache__", "molecule")
    return Path(shutil.copytree(PROJECT, directory, symlinks=True, ignore=ignored))


def release(directory: Path, name: str) -> Path:
    """Copy the project; no module of its validator can be imported beside those of another."""
    project = copy_of_the_project(directory / name)
    for module in (project / PACKAGE).rglob("*.py"):
        if module != project / PACKAGE / "__init__.py":
            with module.open("a") as file:
                file.write(f"\nimport mx_validator\nassert mx_validator.RELEASE == {name!r}\n")
    with (project / PACKAGE / "__init__.py").open("a") as file:
        file.write(f"\nRELEASE = {name!r}\n")
    return project


def test_same_code_is_the_same_archive(tmp_path: Path) -> None:
    one, other = (copy_of_the_project(tmp_path / name) for name in ("one", "other"))
    for file in (other / PACKAGE).rglob("*"):
        os.utime(file, (1, 1))
        file.chmod(0o700)
    (other / PACKAGE / "__pycache__").mkdir()
    (other / PACKAGE / "__pycache__" / "cli.pyc").touch()
    assert archive(one) == archive(other)
    (other / PACKAGE / "sub").mkdir()
    (other / PACKAGE / "sub/__init__.py").touch()
    assert archive(one) != archive(other)


@pytest.fixture
def starts(host: Host) -> Iterator[None]:
    """Start the validator's code all the time; fail if it did not start even once."""
    host.check_output(
        "rm -f /run/starts && systemd-run --quiet --unit=starts /bin/sh -c %s", STARTS
    )
    size = int(host.check_output(f"stat --format=%s {LOG}"))
    eventually(lambda: host.run("grep started /run/starts").rc == 0)
    yield
    host.check_output("systemctl stop starts")
    said = host.check_output(f"cat /run/starts && tail --bytes=+{size + 1} {LOG}")
    assert re.findall(r"(?m)^(?:Traceback|\w*Error).*|^.*(?:No such file|can't open).*", said) == []


@pytest.mark.usefixtures("starts")
def test_upgrade_and_downgrade_while_the_daemon_is_restarted(
    host: Host,
    mailbox: Mx,
    platform: StubClient,
    domain: str,
    site: Callable[..., Any],
    tmp_path: Path,
) -> None:
    old, new = release(tmp_path, "old"), release(tmp_path, "new")
    for project in (old, new, old):
        run = site("--tags=validator", project=project)
        assert {
            "code : Install the code of mx-validator",
            "service : Load the files of validator",
        } <= run.changed
        marker = host.check_output("tail -n 1 /opt/mx-validator/current/mx_validator/__init__.py")
        assert marker == f"RELEASE = {project.name!r}"
        # The current link, and what it leads to.
        assert len(host.check_output("ls /opt/mx-validator").split()) == 2
    site("--tags=validator")
    platform.answer(domain, "allow")
    eventually(lambda: mailbox.rcpt(f"a@{domain}").code, lambda code: code == 250)


DAMAGE = (
    "rm __main__.py",
    "echo >> __init__.py",
    "touch stray.py",
    "chmod 600 __init__.py",
    "rm /usr/local/bin/mx-validator",
    "rm /opt/mx-validator/current",
)


def test_damaged_code_is_replaced(host: Host, site: Callable[..., Any]) -> None:
    install = ("echo %s | sh -c %s install-code mx-validator", packed(PROJECT), INSTALL.read_text())
    for damage in DAMAGE:
        host.check_output(f"cd -P /opt/mx-validator/current/mx_validator && {damage}")
        assert host.check_output(*install) == "installed"
        assert host.check_output(*install) == "unchanged"
    host.check_output(f"rm {DAMAGE[-1].split()[1]}")
    assert "code : Install the code of mx-validator" in site("--tags=validator").changed
    host.check_output("pkill -9 -u mx-validator")
    eventually(lambda: host.run("mx-validator check self-test").rc, lambda status: status == 1)
    assert len(host.check_output("ls /opt/mx-validator").split()) == 2
