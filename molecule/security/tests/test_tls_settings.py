"""What testssl.sh says about the three ports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from probes import Mx

# Said of the certificate, which no public CA has signed.
OF_A_PRIVATE_CA = ("cert_chain_of_trust", "cert_revocation", "cert_validityPeriod")
SEVERE = ("MEDIUM", "HIGH", "CRITICAL")


@pytest.mark.parametrize(("port", "starttls"), [(25, ["--starttls", "smtp"]), (993, []), (995, [])])
def test_testssl(
    mx: Mx,
    tmp_path: Path,
    port: int,
    starttls: list[str],
    record_property: Callable[[str, object], None],
) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            *("testssl", "--quiet", "--warnings=off", "--color=0", "--nodns=min", "--fast"),
            *("--jsonfile", str(report), *starttls, f"--ip={mx.address}", f"{mx.hostname}:{port}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    findings = json.loads(report.read_text())
    # A scan that could not connect has no such lines.
    assert {"TLS1_2", "TLS1_3"} <= {each["id"] for each in findings}, done.stdout
    severe = [each for each in findings if each["severity"] in SEVERE]
    excused = [each for each in severe if each["id"].startswith(OF_A_PRIVATE_CA)]
    for each in excused:
        record_property("testssl, excused", f"{each['severity']} {each['id']}: {each['finding']}")
    assert [each for each in severe if each not in excused] == []
