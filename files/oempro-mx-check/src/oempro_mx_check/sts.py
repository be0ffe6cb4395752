"""MTA-STS (RFC 8461): a policy that makes senders refuse what does not fit it."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from oempro_mx.model import Finding, State, fail, warn
from oempro_mx_check.names import Names
from oempro_mx_check.settings import Mxs
from oempro_mx_check.tls import context

FETCH_SECONDS = 10.0
MAX_BYTES = 65536  # RFC 8461 3.3 suggests a limit of 64 kB
PATH = "/.well-known/mta-sts.txt"
NAME = "MTA-STS"
PUBLISH_IN = "publish in "


class Policy(NamedTuple):
    """What senders read."""

    mode: str
    patterns: list[str]  # names of MX hosts, perhaps with *. at the beginning


def look_at_sts(domain: str, mxs: Mxs, names: Names) -> Iterator[Finding]:
    """Judge the policy of a domain that has published one."""
    published = names.strings(f"_mta-sts.{domain}")
    if not any(text.startswith("v=STSv1;") for text in published):
        return
    try:
        policy = parse(_fetch(f"mta-sts.{domain}", names))
    except (ssl.SSLCertVerificationError, ValueError) as error:
        seen = f"{domain} has announced a policy that senders cannot use: {error}"
        yield warn(NAME, seen, f"curl https://mta-sts.{domain}{PATH}")
        return
    except (OSError, http.client.HTTPException) as error:
        seen = f"the policy of {domain} could not be fetched: {error}"
        yield Finding(NAME, State.COULD_NOT_LOOK, seen, f"curl https://mta-sts.{domain}{PATH}")
        return
    yield from judge(domain, policy, mxs)


def judge(domain: str, policy: Policy, mxs: Mxs) -> Iterator[Finding]:
    """Compare a policy with the hosts: what `enforce` refuses is lost for its sender's patience."""
    if policy.mode == "none":
        return
    say = fail if policy.mode == "enforce" else warn
    file = f"mta-sts.txt of {domain} (and a new id in its TXT record)"
    missing = [name for name in mxs.hostnames if not any(_fits(name, p) for p in policy.patterns)]
    if missing:
        lines = ", ".join(f"mx: {name}" for name in missing)
        seen = f"the policy of {domain} ({policy.mode}) does not name {', '.join(missing)}"
        yield say(NAME, seen, f"{PUBLISH_IN}{file}: {lines}")
    if not mxs.verifiable:
        seen = (
            f"the policy of {domain} ({policy.mode}) wants a certificate that senders can verify, "
            "which an MX has not"
        )
        yield say(NAME, seen, f"{PUBLISH_IN}{file}: mode: none; or set tls_mode to acme")


def parse(text: str) -> Policy:
    """Read a policy. Raises ValueError if it is none."""
    pairs = [line.partition(":")[::2] for line in text.splitlines() if line.strip()]
    fields = [(key.strip(), value.strip().lower()) for key, value in pairs]
    values = dict(fields)
    if values.get("version") != "stsv1" or values.get("mode") not in {"enforce", "testing", "none"}:
        raise ValueError("it has no version STSv1 and mode enforce, testing or none")
    return Policy(values["mode"], [value for key, value in fields if key == "mx"])


def _fits(hostname: str, pattern: str) -> bool:
    """Tell whether a pattern names a host; `*.` stands for one label (RFC 8461 4.1)."""
    if pattern.startswith("*."):
        return hostname.partition(".")[2] == pattern[2:]
    return hostname == pattern


def _fetch(name: str, names: Names) -> str:
    """Return the policy's text, without following redirects (RFC 8461 3.3).

    Raises:
        CouldNotLookError: DNS has not answered.
        OSError, http.client.HTTPException: the web server has not.
        ValueError: it has, but with no policy.
    """
    addresses = names.addresses(name)
    if not addresses:
        raise ValueError(f"{name} has no address")
    connection = http.client.HTTPSConnection(
        addresses[0], timeout=FETCH_SECONDS, context=context(name, verify=True)
    )
    try:
        connection.request("GET", PATH, headers={"Host": name})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"https://{name}{PATH} answers {response.status}")
        return response.read(MAX_BYTES).decode(errors="replace")
    finally:
        connection.close()
