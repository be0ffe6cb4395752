#!/usr/bin/env python3
"""Inventory of the test hosts: the names are fixed, the addresses are those of this checkout."""

import json
import subprocess
import sys
from pathlib import Path

TESTHOST = Path(__file__).resolve().parents[1] / "shared" / "testhost.py"
# One host on each supported release, each with a platform of its own; one is reached as root, one
# as a user who may sudo.
HOSTS = {
    "mx-bookworm": {
        "testhost_release": "bookworm",
        "testhost_stub_port": 8080,
        "ansible_user": "admin",
    },
    "mx-trixie": {
        "testhost_release": "trixie",
        "testhost_stub_port": 8082,
        "ansible_user": "root",
    },
}
# Mail servers that send, for one scenario.
SENDERS = {
    "sender-postfix-bookworm": {"testhost_release": "bookworm", "sender_package": "postfix"},
    "sender-postfix-trixie": {"testhost_release": "trixie", "sender_package": "postfix"},
    "sender-exim": {"testhost_release": "trixie", "sender_package": "exim4-daemon-light"},
    "sender-opensmtpd": {"testhost_release": "trixie", "sender_package": "opensmtpd"},
}
# And one with the programs that fetch mail.
COLLECTORS = {"collector": {"testhost_release": "bookworm"}}
# And one with Prometheus.
WATCHERS = {"watcher": {"testhost_release": "trixie"}}

listing = subprocess.run([TESTHOST, "list"], capture_output=True, text=True, check=False)
if listing.returncode != 0:
    sys.exit(listing.stderr)
lab = json.loads(listing.stdout)
found = {host["name"]: host for host in lab["hosts"]}
access = {
    "ansible_ssh_private_key_file": f"{lab['folder']}/ssh_key",
    "ansible_ssh_common_args": f"-o UserKnownHostsFile={lab['folder']}/known_hosts",
}
for name, settings in [*SENDERS.items(), *COLLECTORS.items(), *WATCHERS.items()]:
    settings["ansible_user"] = "root"
    if name in found:
        settings["ansible_host"] = found[name]["address"]
for name, variables in HOSTS.items():
    variables["mx_hostname"] = f"{name}.example.com"
    if name in found:
        variables["ansible_host"] = found[name]["address"]
        variables["testhost_address6"] = found[name]["address6"]
print(
    json.dumps(
        {
            "mx": {
                "hosts": list(HOSTS),
                "vars": {
                    **access,
                    "testhost_gateway": lab["gateway"],
                    "testhost_gateway6": lab["gateway6"],
                },
            },
            "senders": {"hosts": list(SENDERS), "vars": access},
            "collectors": {"hosts": list(COLLECTORS), "vars": access},
            "watchers": {"hosts": list(WATCHERS), "vars": access},
            "_meta": {"hostvars": {**HOSTS, **SENDERS, **COLLECTORS, **WATCHERS}},
        }
    )
)
