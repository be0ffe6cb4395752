"""The hosts that send."""

from __future__ import annotations

import pytest

from sending import Sender


@pytest.fixture(
    params=["sender-postfix-bookworm", "sender-postfix-trixie", "sender-exim", "sender-opensmtpd"]
)
def sender(request: pytest.FixtureRequest) -> Sender:
    """One of the mail servers that send."""
    return Sender(request.param)
