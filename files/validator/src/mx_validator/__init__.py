"""Tells Postfix which recipient domains the e-mail platform owns."""
