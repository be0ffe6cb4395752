"""The exporters of a host, read as Prometheus does."""

from __future__ import annotations

import re
import urllib.request

PORTS = (9100, 9854, 9900)
Metrics = dict[str, float]


def scrape(address: str) -> Metrics:
    """Read all exporters: values by name and labels."""
    found: Metrics = {}
    for port in PORTS:
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        assert text, port
        found |= {
            name: float(value) for name, value in re.findall(r"(?m)^(\w+(?:\{.*\})?) (\S+)$", text)
        }
    return found
