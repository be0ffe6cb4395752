"""The records that the play tells the operator to publish."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from collections.abc import Callable
from typing import Any

from probes import Mx


def test_records(mx: Mx, variables: dict[str, Any], site: Callable[..., Any]) -> None:
    said = site("--tags=dns").said
    name = mx.hostname
    assert f"{name}. A {mx.address}" in said
    assert f"{name}. AAAA {variables['testhost_address6']}" in said
    backwards = ".".join(reversed(mx.address.split(".")))
    assert f"{backwards}.in-addr.arpa. PTR {name}." in said
    assert f"DOMAIN. MX 10 {name}." in said
    assert f'{name}. TXT "v=spf1 -all"' in said
    # RFC 6698: 3 1 1 is the SHA-256 of the public key that the host shows.
    shown = ssl.get_server_certificate((mx.address, 993))
    key = subprocess.run(
        "openssl x509 -noout -pubkey | openssl pkey -pubin -outform DER",
        shell=True,
        input=shown.encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert f"_25._tcp.{name}. TLSA 3 1 1 {hashlib.sha256(key).hexdigest()}" in said
    assert "_mta-sts" not in said  # senders could not verify a self-signed certificate
    said = site("--tags=dns", tls_mode="acme").said
    assert f'{name}. CAA 0 issue "letsencrypt.org"' in said
    assert "_mta-sts.DOMAIN. TXT" in said
