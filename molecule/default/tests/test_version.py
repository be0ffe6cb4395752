"""The host says which version of the project made it what it is."""

from __future__ import annotations

from pathlib import Path

from testinfra.host import Host

VERSION = (Path(__file__).resolve().parents[3] / "VERSION").read_text()


def test_version(host: Host) -> None:
    assert host.file("/var/lib/oempro-mx/version").content_string == VERSION
    assert host.check_output("mx-validator --version") == f"mx-validator {VERSION}".rstrip()
