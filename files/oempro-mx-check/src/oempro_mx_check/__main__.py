"""The command: python3 -m oempro_mx_check, with the settings on standard input."""

from __future__ import annotations

import sys

try:
    import cryptography  # noqa: F401 - ansible-core needs it, too
    import dns.resolver
except ModuleNotFoundError as missing:
    print(
        f"{sys.executable} has no module {missing.name}, with which the check asks DNS."
        f" Install it: {sys.executable} -m pip install dnspython"
    )
    sys.exit(2)

from oempro_mx.cli import exit_code
from oempro_mx.model import State
from oempro_mx.text import lines
from oempro_mx_check.look import look
from oempro_mx_check.settings import Settings


def main() -> int:
    """Print the report; return the exit code of `oempro-mx status`."""
    try:
        sections = look(Settings.read(sys.stdin.read()))
    except dns.resolver.NoResolverConfiguration as error:
        print(f"this machine names no DNS server: {error}. Set check_resolvers")
        return 2
    for title, findings in sections:
        print(f"{title}:")
        print("\n".join(lines(findings, colour=False)))
    found = [finding for _, findings in sections for finding in findings]
    counts = {state: sum(each.state is state for each in found) for state in State}
    print(", ".join(f"{count} {state.value}" for state, count in counts.items()))
    return exit_code(found)


if __name__ == "__main__":
    sys.exit(main())
