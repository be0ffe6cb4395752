"""What does not fit stops the play, with a message that helps, before anything is changed.

A run of the playbook takes seconds, and names all that is wrong. So one run has many wrong
inventories: each is a host of its own in it, reached at the address of the host under test.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # ansible-core brings it
from testinfra.host import Host

from playbooks import strangers_playbook
from probes import eventually

PROJECT = Path(__file__).resolve().parents[3]
SITE = str(PROJECT / "site.yml")
PREFLIGHT = PROJECT / "roles" / "preflight" / "vars" / "main"
SERVICES = ("firewall", "supervisor", "validator", "dovecot", "postfix")
REQUIRED = ("mx_hostname", "oempro_url", "oempro_admin_api_key", "catchall_password")
HIDDEN = "set, but not usable (its value is not shown)"

# What is of another type, by the type that is asked for. Ansible itself would take most of these.
OTHER_TYPES: dict[str, list[object]] = {
    "bool": ["false", "yes", 0, None],
    "int": ["many", "1.5", 2.5, True, None],
    "str": [17, True, ["a"], None],
    "path": [17, "relative", ["/a/b"], None],
    "list": ["imaps,pop3s", 17, {"imaps": True}, None],
    "dict": ["a=b", ["a"], 17, None],
}
NETWORKS = (
    "the office",
    "192.0.2.1/24",
    "192.0.2.0/33",
    "192.0.2.0/255.255.255.0",
    "2001:db8::1/32",
)
ADDRESSES = ("localhost", "127.0.0.1/8", "[::1]")
FILES = ("ca.pem", "/nowhere/ca.pem")
TEXTS = ("", "two\nlines", "größer", "-")

# Forms, by way of example: what an operator may have meant.
WRONG: tuple[tuple[str, object], ...] = (
    ("mx_hostname", "mx1"),
    ("mx_hostname", "MX1.example.com"),
    ("mx_hostname", "192.0.2.1"),
    ("mx_hostname", "mx1.example.com."),
    ("mx_hostname", f"{'a' * 64}.example.com"),
    ("oempro_url", "oempro.example.com"),
    ("oempro_url", "ftp://oempro.example.com/"),
    ("oempro_url", "https://oempro.example.com"),
    ("oempro_url", "https://user:word@oempro.example.com/"),
    ("oempro_url", "https://a b/"),
    ("oempro_url", "https://[2001:db8::1]/"),
    ("oempro_admin_api_key", "change-me"),
    ("oempro_admin_api_key", "a wrong secret"),  # has blanks: no key
    ("catchall_password", "change-me"),
    ("catchall_password", "too short"),
    ("catchall_password", 123456789012),
    ("catchall_username", "A user"),
    ("tls_mode", "magic"),
    ("dovecot_mail_home", "/var/catchall"),  # would give /var to the mail user
    ("dovecot_protocols", ["imaps", "jmap"]),
    ("tls_acme_email", "postmaster"),
    ("postfix_message_size_limit", 12),
    ("postfix_queue_lifetime_days", 101),  # Postfix's queue manager would not start
    ("validator_allow_ttl_seconds", 86401),  # the validator would not start
    ("validator_known_good_days", 366),
)
# What is right alone.
TOGETHER: tuple[tuple[dict[str, object], str], ...] = (
    ({"tls_mode": "provided"}, "tls_mode is provided, but tls_certificate_file is empty"),
    ({"tls_mode": "provided"}, "tls_mode is provided, but tls_private_key_file is empty"),
    ({"tls_selfsigned_days": 30}, "renew_before_days is 30, and tls_selfsigned_days is 30"),
    ({"postfix_extra_parameters": {"mydestination": "a"}}, "sets mydestination, which the role"),
    ({"postfix_extra_parameters": {"my name": "a"}}, 'postfix_extra_parameters has "my name"'),
    ({"postfix_extra_parameters": {"in_flow_delay": None}}, "sets in_flow_delay to null"),
    ({"postfix_extra_parameters": {"biff_x": True}}, "sets biff_x to true"),
    ({"postfix_extra_parameters": {"x": "a\nb = c"}}, r'sets x to "a\nb = c"'),
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def options() -> dict[str, dict[str, Any]]:
    """What the inventory and the roles take, by name."""
    listed = load(PREFLIGHT / "options.yml")
    found: dict[str, dict[str, Any]] = listed["__preflight_inventory"]
    for role in listed["__preflight_roles"]:
        specification = load(PROJECT / "roles" / role / "meta" / "argument_specs.yml")
        found |= specification["argument_specs"]["main"].get("options", {})
    return found


RULES: dict[str, dict[str, Any]] = load(PREFLIGHT / "rules.yml")["__preflight_rules"]
OPTIONS = options()
SECRETS = {name for name, option in OPTIONS.items() if option.get("no_log")}


def wrong_values(name: str, option: dict[str, Any]) -> list[object]:
    """Values that a variable must not have, whatever it is for."""
    rule = RULES.get(name, {})
    many = option["type"] == "list"
    one = list(OTHER_TYPES[option["elements"] if many else option["type"]])
    if "least" in rule:
        one += [rule["least"] - 1, rule["most"] + 1, str(rule["most"] + 1)]
    if "choices" in option:
        one += ["magic", ""]
    if "pattern" in rule:
        one += [text for text in TEXTS if not re.match(rule["pattern"], text)]
    if "file" in rule:
        one += FILES
    if not many:
        return one
    return [*OTHER_TYPES["list"], *([each] for each in one), *([[]] if "filled" in rule else [])]


def refusals(output: str) -> dict[str, str]:
    """What the playbook said of each host that it refused."""
    return dict(re.findall(r"(?ms)^fatal: \[([^]]+)\]: FAILED! =>(.*?)(?=^\S|\Z)", output))


def is_named(name: str, value: object, message: str) -> bool:
    """Whether a message says what is wrong with a variable; a secret it does not show."""
    empty = "missing or empty" if name in REQUIRED and value in ("", None) else ""
    seen = empty or (HIDDEN if name in SECRETS else json.dumps(value))
    return re.search(rf"(?m)^\s*{name} is {re.escape(seen)}\. Set it to \S", message) is not None


@pytest.fixture
def refuse(site: Callable[..., Any], variables: dict[str, Any], tmp_path: Path) -> Any:
    """Run the playbook with inventories, by name; return what it said when it refused each."""

    def run(inventories: Mapping[str, Mapping[str, object]], *arguments: str) -> dict[str, str]:
        right = {key: value for key, value in variables.items() if key != "groups"}
        hosts = {
            name: {key: value for key, value in {**right, **changed}.items() if value is not ...}
            for name, changed in inventories.items()
        }
        inventory = tmp_path / "hosts.json"
        inventory.write_text(json.dumps({"mx": {"hosts": hosts}}))
        done = site("--limit=all", *arguments, check=False, inventory=inventory)
        said = refusals(done.output)
        assert said.keys() == hosts.keys(), done.output
        recap = re.findall(r"(?m)^(\S+) .*changed=(\d+) .*failed=(\d+)", done.output)
        assert sorted(recap) == sorted((name, "0", "1") for name in hosts)
        for changed in inventories.values():
            for name in SECRETS & changed.keys():
                if len(str(changed[name])) > 8:  # a shorter one may stand there for something else
                    assert str(changed[name]) not in done.output
        return said

    return run


@pytest.mark.usefixtures("untouched")
def test_each_variable_is_refused_with_a_value_that_it_must_not_have(refuse: Any) -> None:
    columns = {name: wrong_values(name, option) for name, option in OPTIONS.items()}
    inventories: dict[str, dict[str, object]] = {
        f"wrong-{number}": {
            name: value for name, value in zip(columns, row, strict=True) if value is not ...
        }
        for number, row in enumerate(zip_longest(*columns.values(), fillvalue=...))
    }
    said = refuse(inventories)
    missed = [
        (name, value)
        for host, wrong in inventories.items()
        for name, value in wrong.items()
        if not is_named(name, value, said[host])
    ]
    assert missed == []
    assert {name for wrong in inventories.values() for name in wrong} == OPTIONS.keys()


@pytest.mark.usefixtures("untouched")
def test_wrong_value_alone(refuse: Any) -> None:
    """One wrong value is enough, and nothing else is said."""
    said = refuse({f"wrong-{number}": dict([wrong]) for number, wrong in enumerate(WRONG)})
    for number, (name, value) in enumerate(WRONG):
        assert is_named(name, value, said[f"wrong-{number}"])
        assert said[f"wrong-{number}"].count("Set it to") == 1


@pytest.mark.usefixtures("untouched")
def test_password_of_which_a_template_is_made(refuse: Any) -> None:
    password = "of this {{ name }} is made a template"
    said = refuse({"wrong": {"catchall_password": password}})["wrong"]
    assert "catchall_password is a template that cannot be rendered. Set it to " in said
    assert "after !unsafe if it has braces in it" in said


@pytest.mark.usefixtures("untouched")
def test_missing_variable(refuse: Any) -> None:
    for name, message in refuse({name: {name: ...} for name in REQUIRED}).items():
        assert is_named(name, None, message)


@pytest.mark.usefixtures("untouched")
def test_values_that_do_not_go_together(refuse: Any) -> None:
    said = refuse({f"wrong-{number}": wrong for number, (wrong, _) in enumerate(TOGETHER)})
    for number, (_, reason) in enumerate(TOGETHER):
        assert reason in said[f"wrong-{number}"]


@pytest.mark.usefixtures("untouched")
def test_networks_and_addresses(refuse: Any) -> None:
    networks = [name for name, rule in RULES.items() if "network" in rule]
    addresses = [name for name, rule in RULES.items() if "address" in rule]
    inventories: dict[str, dict[str, Any]] = {
        f"wrong-{number}": {
            **({name: ["192.0.2.0/24", network] for name in networks}),
            **({name: address for name in addresses if address}),
        }
        for number, (network, address) in enumerate(zip_longest(NETWORKS, ADDRESSES))
    }
    shut_out = {
        "elsewhere": {"firewall_ssh_sources": ["192.0.2.0/24", "2001:db8::/32"]},
        "nowhere": {"firewall_ssh_sources": []},
        "port": {"firewall_ssh_ports": [2222, 22022]},
    }
    said = refuse(inventories | shut_out)
    for host, wrong in inventories.items():
        for name, value in wrong.items():
            expected = f"is {json.dumps(value)}." if name in addresses else f'has "{value[-1]}"'
            assert f"{name} {expected}" in said[host]
    assert "not in firewall_ssh_sources (192.0.2.0/24, 2001:db8::/32)" in said["elsewhere"]
    assert "not in firewall_ssh_sources (empty)" in said["nowhere"]
    assert "comes to port 22, which is not in firewall_ssh_ports (2222, 22022)" in said["port"]


@pytest.mark.usefixtures("untouched")
def test_names_that_are_no_variables(refuse: Any) -> None:
    """Renamed and removed ones are refused with what to do; a misspelling with what was meant."""
    former: dict[str, str] = load(PREFLIGHT / "former.yml")["__preflight_former"]
    misspelt = {
        "postfix_mesage_size_limit": "postfix_message_size_limit",
        "fail2ban_enable": "fail2ban_enabled",
        "catchall_user": "catchall_username",
        "tls_cert_file": "tls_certificate_file",
        "validator_api_rate_second": "validator_api_rate_per_second",
    }
    said = refuse({name: {name: "a"} for name in (*former, *misspelt)})
    for name, advice in former.items():
        assert f"{name} is no variable any more. {advice}" in said[name]
        for new in re.findall(r"Rename it to (\w+)", advice):
            assert new in OPTIONS
    for name, meant in misspelt.items():
        assert f"{name} is no variable. Did you mean {meant}?" in said[name]


@pytest.mark.usefixtures("untouched")
def test_variable_that_is_nobodys_is_named_only(site: Callable[..., Any]) -> None:
    others = {"firewall_allowed_tcp_ports": [8080], "dns_servers": ["192.0.2.53"]}
    run = site("--check", "--tags=dns", **others)
    assert "No role of these reads dns_servers, firewall_allowed_tcp_ports." in run.said


@pytest.mark.usefixtures("untouched")
def test_command_line_that_makes_text_of_it(site: Callable[..., Any]) -> None:
    """Whatever the tag. A number may be text; a boolean and a list must not."""
    wrong = "fail2ban_enabled=true dovecot_protocols=imaps postfix_log_days=15"
    run = site("--tags=postfix", f"--extra-vars={wrong}", check=False)
    assert run.status != 0
    assert run.recap["changed"] == 0
    assert (
        'fail2ban_enabled is "true". Set it to true or false. With --extra-vars, give' in run.said
    )
    assert 'dovecot_protocols is "imaps". Set it to a list' in run.said
    assert "postfix_log_days is" not in run.said


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("task", ["firewall : configure | Render the rules", "Record the version"])
def test_run_that_begins_in_its_middle(site: Callable[..., Any], task: str) -> None:
    run = site(f"--start-at-task={task}", check=False)
    assert run.status != 0
    assert run.recap["changed"] == 0
    assert "Run site.yml without --start-at-task; --tags runs a part of it." in run.said


@pytest.mark.usefixtures("untouched")
def test_system_that_is_not_supported(site: Callable[..., Any]) -> None:
    run = site(check=False, preflight_supported_systems={"Debian": [11]})
    assert run.status != 0
    assert "Supported: Debian 11." in run.said
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


def test_each_role_is_validated() -> None:
    """The list of roles has all that an operator can set something of."""
    listed = load(PREFLIGHT / "options.yml")["__preflight_roles"]
    found = {path.parents[1].name for path in PROJECT.glob("roles/*/meta/argument_specs.yml")}
    assert found == {
        *listed,
        "code",
        "service",
    }  # which takes its arguments from the other roles alone
    assert RULES.keys() <= OPTIONS.keys()


def test_check_of_a_bare_host_says_which_services_would_be_loaded(
    site: Callable[..., Any],
) -> None:
    loaded = {f"service : Load the files of {name}" for name in SERVICES}
    assert loaded <= site("--check").changed


@pytest.mark.parametrize(
    "inventory",
    [{}, {"mx": {"hosts": {}}}, {"mailservers": {"hosts": {"mx1.example.com": {}}}}],
    ids=["none", "empty group", "another group"],
)
def test_inventory_without_a_host(inventory: dict[str, object], tmp_path: Path) -> None:
    """Ansible would do nothing, and end well."""
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    given = ["--inventory=hosts.json"] if inventory else []
    done = strangers_playbook(tmp_path, *given, SITE)
    assert done.returncode != 0
    assert "The inventory (-i) has no host in group mx." in " ".join(done.stdout.split())


def test_checkout_is_used_from_another_folder(variables: dict[str, Any], tmp_path: Path) -> None:
    """With the operator's own ansible.cfg, which knows nothing of it."""
    (tmp_path / "ansible.cfg").write_text("[defaults]\nforks = 3\n")
    right = {key: value for key, value in variables.items() if key != "groups"}
    (tmp_path / "hosts.json").write_text(json.dumps({"mx": {"hosts": {"mx1": right}}}))
    done = strangers_playbook(tmp_path, "--inventory=hosts.json", "--check", SITE)
    assert done.returncode == 0, done.stdout


def test_example_inventory_is_complete() -> None:
    """The example has every required variable, and its placeholders are refused by name."""
    listing = subprocess.check_output(
        ["ansible-inventory", "--inventory=inventory.example", "--list"], cwd=PROJECT, text=True
    )
    (variables,) = json.loads(listing)["_meta"]["hostvars"].values()
    assert set(REQUIRED) <= set(variables)
