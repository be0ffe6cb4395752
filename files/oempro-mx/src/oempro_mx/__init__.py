"""Looks after the whole MX, on the host."""

__version__ = "1.0.0"  # as in the project's VERSION
