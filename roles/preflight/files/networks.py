"""Print networks and addresses that are none, and how the firewall would shut this run out.

A line each. It runs on the host: there is SSH_CONNECTION, this run as sshd sees it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from typing import Any

NETWORK_ADVICE = "Set each element to a network such as 192.0.2.0/24 or 2001:db8::/32."
ADDRESS_ADVICE = "Set it to an IP address of the host, such as 127.0.0.1 or ::1."
SHUT_OUT_ADVICE = "Add it, or the firewall would shut out the next run."


def network_fault(name: str, text: str) -> str:
    """Return what is wrong with a network; nothing if nftables, too, takes it for one."""
    try:
        # Python also takes a netmask for the length of the prefix.
        ipaddress.ip_network(text if re.fullmatch("[^/]+(/[0-9]{1,3})?", text) else "")
    except ValueError as error:
        reason = f": {error}" if "host bits" in str(error) else ", which is no network"
        return f"{name} has {json.dumps(text)}{reason}. {NETWORK_ADVICE}"
    return ""


def address_fault(name: str, text: str) -> str:
    """Return what is wrong with an address; nothing if it is one."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return f"{name} is {json.dumps(text)}. {ADDRESS_ADVICE}"
    return ""


def shut_out(connection: str, sources: list[str], ports: list[int | str]) -> list[str]:
    """Return why the firewall would refuse an SSH connection like this one.

    Args:
        connection: SSH_CONNECTION: the client's address and port, the host's address and port.
        sources: The networks that the firewall lets in.
        ports: The ports that it opens to them.
    """
    client, _, _, port = connection.split()
    address: Any = ipaddress.ip_address(client.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    opened = [str(each) for each in ports]
    faults = []
    if not any(address in ipaddress.ip_network(source) for source in sources):
        which = f"firewall_ssh_sources ({', '.join(sources) or 'empty'})"
        faults.append(f"This run comes from {address}, which is not in {which}. {SHUT_OUT_ADVICE}")
    if port not in opened:
        which = f"firewall_ssh_ports ({', '.join(opened)})"
        faults.append(f"This run comes to port {port}, which is not in {which}. {SHUT_OUT_ADVICE}")
    return faults


settings = json.loads(sys.argv[1])
found = [network_fault(n, each) for n, texts in settings["networks"].items() for each in texts]
found += [address_fault(name, text) for name, text in settings["addresses"].items()]
if settings["firewall"] and "SSH_CONNECTION" in os.environ and not any(found):
    found += shut_out(os.environ["SSH_CONNECTION"], settings["sources"], settings["ports"])
print("\n".join(filter(None, found)))
