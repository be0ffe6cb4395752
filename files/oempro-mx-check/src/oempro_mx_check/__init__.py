"""Looks at MX hosts, and at the DNS of their domains, from outside."""

__version__ = "1.0.0"  # as in the project's VERSION
