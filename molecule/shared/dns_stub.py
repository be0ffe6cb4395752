"""A DNS server for tests: it has what they publish, and fails where they want it to."""

from __future__ import annotations

import socketserver
import threading
from collections import defaultdict
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TTL_SECONDS = 0


class DnsStub:
    """Records by name and type; without any, a name does not exist."""

    def __init__(self, address: str) -> None:
        self.records: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.failing: set[str] = set()  # names at which it says SERVFAIL; "." for all
        stub = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, connection = self.request
                connection.sendto(stub.answer(data), self.client_address)

        self._server: Any = socketserver.ThreadingUDPServer((address, 53), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def publish(self, line: str) -> None:
        """Publish a record as it stands in a zone file, in place of others of its kind."""
        name, kind, data = line.split(" ", 2)
        records = self.records[name.removesuffix(".")]
        if kind == "CNAME" or not records[kind] or kind not in {"MX", "A", "AAAA"}:
            records[kind] = [data]
        else:
            records[kind].append(data)

    def withdraw(self, name: str, *kinds: str) -> None:
        """Remove records of a name."""
        for kind in kinds or list(self.records[name]):
            self.records[name].pop(kind, None)

    def answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        if self.failing & {name, "."}:
            response.set_rcode(dns.rcode.SERVFAIL)
            return bytes(response.to_wire())
        while target := self._add(response, name, "CNAME") if kind != "CNAME" else "":
            name = target
        self._add(response, name, kind)
        if not any(self.records.get(name, {}).values()):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return bytes(response.to_wire())

    def _add(self, response: dns.message.Message, name: str, kind: str) -> str:
        """Add the records of a name to the answer; return the first one's name, for a CNAME."""
        values = self.records.get(name, {}).get(kind, [])
        if values:
            owner = dns.name.from_text(name)
            response.answer.append(dns.rrset.from_text(owner, TTL_SECONDS, "IN", kind, *values))
        return values[0].removesuffix(".") if values else ""
