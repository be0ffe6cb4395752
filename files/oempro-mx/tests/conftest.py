from __future__ import annotations

import pytest

from oempro_mx.settings import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings(
        hostname="mx1.example.com",
        username="catchall",
        protocols=["imaps", "pop3s"],
        mail_home="/var/vmail/catchall",
        certificate="/etc/oempro-mx/tls/mx.pem",
        certificate_mode="acme",
        units=["postfix.service"],
        firewall=True,
        queue_minutes=15,
        mailbox_minutes=60,
        playbook="ansible-playbook",
    )
