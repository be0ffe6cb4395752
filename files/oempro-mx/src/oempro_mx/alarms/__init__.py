"""Tells somebody elsewhere when the status changes."""
