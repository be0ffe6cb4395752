"""Print a warning for each mail port of an MX that cannot be reached from here, and why.

It runs on the controller. A port of the mailbox that is refused at once is none: the MX's own
firewall answers so whom firewall_mailbox_sources does not name; others drop.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

SMTP = 25
MAILBOX = (993, 995, 143, 110)
TIMEOUT_SECONDS = 10
OUR_TABLES = ("inet oempro_mx", "inet f2b-table")
DROPS = re.compile(r"policy drop;|\s(drop|reject)\s")
# In the list of iptables-legacy-save, whose rules nft does not see.
LEGACY_DROPS = re.compile(r"(?m)^(:INPUT DROP|-A (INPUT|ufw\S*) .*-j (DROP|REJECT))\b")


def answer(address: str, port: int) -> str:
    """Connect to a port; return the greeting of SMTP, or why there is none."""
    try:
        with socket.create_connection((address, port), TIMEOUT_SECONDS) as connection:
            greeting = connection.recv(512) if port == SMTP else b""
            return greeting.decode(errors="replace").rstrip()
    except OSError as error:
        return str(error) or type(error).__name__


def drops(table: str) -> bool:
    """Tell whether what comes in may be dropped by a table of nftables."""
    chains = dict(re.findall(r"(?ms)^\tchain (\S+) \{$(.*?)^\t\}", table))
    entered = [name for name, rules in chains.items() if "hook input" in rules]
    for name in entered:  # it grows
        targets = re.findall(r"\b(?:jump|goto) (\S+)", chains.get(name, ""))
        entered += [target for target in targets if target not in entered]
    return any(DROPS.search(chains.get(name, "")) for name in entered)


def other_firewalls(rules: str) -> list[str]:
    """Return the tables besides ours that may drop what comes in, as nft and iptables list them."""
    tables = re.split(r"(?m)^table ", rules)[1:]
    found = {table.split(" {")[0]: table for table in tables}
    others = [name for name, table in found.items() if name not in OUR_TABLES and drops(table)]
    return others + ["of iptables-legacy"] * bool(LEGACY_DROPS.search(rules))


def warnings(address: str, hostname: str, rules: str) -> list[str]:
    """Return what keeps senders, or the platform, from the host as far as can be seen."""
    with ThreadPoolExecutor() as pool:
        smtp = pool.submit(answer, address, SMTP)
        mailbox = {port: pool.submit(answer, address, port) for port in MAILBOX}
    found = []
    if not smtp.result().startswith(f"220 {hostname} "):
        found.append(
            f"WARNING: port {SMTP} of {address} does not answer this machine as {hostname}, but: "
            f"{smtp.result()!r}. A firewall on the host or in front of it is closed, or this "
            "machine's provider lets no port 25 out: connect from elsewhere to be sure."
        )
    silent = [str(port) for port, said in mailbox.items() if "timed out" in said.result()]
    if silent:
        found.append(
            f"WARNING: packets to port {', '.join(silent)} of {address} are dropped on their way. "
            "If the platform's are, too, it cannot read the mailbox."
        )
    if tables := other_firewalls(rules):
        found.append(
            f"WARNING: other firewalls on {address} filter what comes in: the table "
            f"{', '.join(tables)}. What they drop stays dropped: let them accept port 25 and the "
            "ports of the mailbox, or remove them (ufw: ufw disable)."
        )
    return found


if __name__ == "__main__":
    print("\n".join(warnings(**json.load(sys.stdin))))
