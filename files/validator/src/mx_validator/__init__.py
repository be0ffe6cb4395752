"""Tells Postfix which recipient domains the e-mail platform owns."""

__version__ = "1.0.0"  # as in the project's VERSION
