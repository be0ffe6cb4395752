"""Each role in somebody's own playbook, as its README shows, on a host that was bare.

From a folder and with an ansible.cfg of his own. The test's names and addresses stand for those of
the examples.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from playbooks import strangers_playbook
from testhost import TESTER

PROJECT = Path(__file__).resolve().parents[3]
ROLES = PROJECT / "roles"
OURS = ("ansible_", "testhost_")  # how the host is reached, and the platform's stub
# In the order in which each finds what it needs; the service is internal to the others.
ORDER = (
    *("preflight", "base", "firewall", "tls", "supervisor", "validator", "dovecot", "fail2ban"),
    *("postfix", "status", "alarm", "monitoring", "reachability", "dns"),
)


@pytest.fixture
def own_project(tmp_path: Path, variables: dict[str, Any]) -> Path:
    """A folder with an ansible.cfg that names the roles, and no variables of theirs."""
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\nroles_path = {ROLES}\n")
    connection = {name: value for name, value in variables.items() if name.startswith(OURS)}
    secrets = {
        "vault_oempro_admin_api_key": variables["oempro_admin_api_key"],
        "vault_catchall_password": variables["catchall_password"],
    }
    hosts = {variables["inventory_hostname"]: connection | secrets}
    (tmp_path / "hosts.json").write_text(json.dumps({"mx": {"hosts": hosts}}))
    return tmp_path


def example(role: str, variables: dict[str, Any]) -> str:
    """Return the playbook in a role's README, with the test's names for the documentation's."""
    readme = (ROLES / role / "README.md").read_text()
    found = re.search(r"```yaml\n(- hosts: .*?)```", readme, re.S)
    assert found, role
    text = found[1]
    for documented, tested in {
        "mx1.example.com": variables["mx_hostname"],
        "https://oempro.example.com/": variables["oempro_url"],
        "198.51.100.0/24": "10.99.0.0/16",
        "192.0.2.10/32": f"{TESTER}/32",
    }.items():
        text = text.replace(documented, tested)
    return text


def test_every_role_has_its_place_here() -> None:
    found = {path.parent.name for path in ROLES.glob("*/README.md")}
    assert found == {*ORDER, "check", "code", "service"}


@pytest.mark.parametrize("role", ORDER)
def test_example_of_the_readme(own_project: Path, variables: dict[str, Any], role: str) -> None:
    (own_project / "play.yml").write_text(example(role, variables))
    done = strangers_playbook(own_project, "--inventory=hosts.json", "play.yml")
    assert done.returncode == 0, done.stdout
    assert variables["catchall_password"] not in done.stdout


def test_example_of_the_check(own_project: Path, variables: dict[str, Any]) -> None:
    """It fails, since nobody has published the test's names."""
    (own_project / "play.yml").write_text(example("check", variables))
    done = strangers_playbook(own_project, "--inventory=hosts.json", "play.yml")
    assert done.returncode != 0
    assert re.search(r"OK +services ", done.stdout), done.stdout
    assert f"{variables['mx_hostname']} has no A or AAAA record" in done.stdout
    assert variables["catchall_password"] not in done.stdout
