"""What does not fit stops the play, with a message that helps, before anything is changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from probes import eventually

SECRET = "a wrong secret"  # has blanks: no key
WRONG: tuple[tuple[str, object, str], ...] = (
    ("mx_hostname", "mx1", 'mx_hostname is "mx1"'),
    ("mx_hostname", "MX1.example.com", 'mx_hostname is "MX1.example.com"'),
    ("mx_hostname", "192.0.2.1", 'mx_hostname is "192.0.2.1"'),
    ("mx_hostname", "mx1.example.com.", 'mx_hostname is "mx1.example.com."'),
    ("mx_hostname", None, "mx_hostname is null"),
    ("oempro_url", "oempro.example.com", 'oempro_url is "oempro.example.com"'),
    ("oempro_url", "ftp://oempro.example.com/", 'oempro_url is "ftp://oempro.example.com/"'),
    ("oempro_url", "https://oempro.example.com", 'oempro_url is "https://oempro.example.com"'),
    ("oempro_url", "https://a b/", 'oempro_url is "https://a b/"'),
    ("oempro_admin_api_key", "", "oempro_admin_api_key is missing or empty"),
    ("oempro_admin_api_key", "change-me", "oempro_admin_api_key is set, but"),
    ("oempro_admin_api_key", SECRET, "oempro_admin_api_key is set, but"),
    ("catchall_password", "", "catchall_password is missing or empty"),
    ("catchall_password", "too short", "catchall_password is set, but"),
    ("catchall_password", 123456789012, "catchall_password is set, but"),
    ("tls_mode", "magic", 'tls_mode is "magic"'),
    ("tls_mode", "provided", "tls_mode is provided, but tls_certificate_file is empty"),
    ("tls_acme_ca_file", "/nowhere/ca.pem", 'tls_acme_ca_file is "/nowhere/ca.pem", but there is'),
    ("validator_ca_file", "ca.pem", 'validator_ca_file is "ca.pem", but there is'),
    ("preflight_supported_systems", {"Debian": ["11"]}, "Supported: Debian 11."),
)
REQUIRED = ("mx_hostname", "oempro_url", "oempro_admin_api_key", "catchall_password")


@pytest.fixture
def untouched(host: Host) -> Any:
    """Assert after the test that the host is as bare as before."""
    packages = host.check_output("dpkg-query -W")
    files = host.check_output("find /etc /opt /usr /var -xdev -type f | sort | sha256sum")
    yield
    assert host.check_output("dpkg-query -W") == packages
    assert host.check_output("find /etc /opt /usr /var -xdev -type f | sort | sha256sum") == files


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_value(site: Callable[..., Any], name: str, value: object, message: str) -> None:
    run = site(check=False, **{name: value})
    assert run.status != 0
    assert message in run.said
    assert run.recap["changed"] == 0
    if name in ("oempro_admin_api_key", "catchall_password") and value:
        assert f"{value}" not in run.output.replace(
            "change-me", "" if value != "change-me" else "x"
        )


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", REQUIRED)
def test_missing_variable(
    site: Callable[..., Any], variables: dict[str, Any], tmp_path: Path, host: Host, name: str
) -> None:
    kept = {key: value for key, value in variables.items() if key != name}
    kept.pop("groups", None)
    inventory = tmp_path / "hosts.json"
    hosts = {host.backend.get_hostname(): kept}
    inventory.write_text(json.dumps({"mx": {"hosts": hosts}}))
    run = site(check=False, inventory=inventory)
    assert run.status != 0
    assert f"{name} is " in run.output
    assert run.recap["changed"] == 0


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("port", "more"), [(25, {}), (80, {"tls_mode": "acme"})])
def test_port_is_held_by_another_program(
    host: Host, site: Callable[..., Any], port: int, more: dict[str, str]
) -> None:
    listen = f"import socket,time; s=socket.create_server(('127.0.0.1',{port})); time.sleep(600)"
    host.check_output("systemd-run --quiet --unit=squatter python3 -c %s", listen)
    try:
        eventually(lambda: host.run(f"ss -Hlnt sport = :{port}").stdout)
        run = site(check=False, **more)
    finally:
        host.check_output("systemctl stop squatter")
    assert run.status != 0
    assert f"Port {port} of {host.backend.get_hostname()} is held by" in run.said
    assert '"python3"' in run.said
    assert run.recap["changed"] == 0


def test_secrets_are_not_in_a_verbose_run(
    site: Callable[..., Any], variables: dict[str, Any]
) -> None:
    run = site("--check", "--diff", "-vvv")
    for name in ("oempro_admin_api_key", "catchall_password"):
        assert variables[name] not in run.output


def test_example_inventory_is_complete() -> None:
    """The example has every required variable, and its placeholders are refused by name."""
    project = Path(__file__).resolve().parents[3]
    listing = subprocess.check_output(
        ["ansible-inventory", "--inventory=inventory.example", "--list"], cwd=project, text=True
    )
    (variables,) = json.loads(listing)["_meta"]["hostvars"].values()
    assert set(REQUIRED) <= set(variables)
