"""Hostile senders, while honest ones send."""

from __future__ import annotations

from hostile import CONNECTIONS, IDLE, JUNK, NOOP, Attack, further_addresses
from probes import eventually
from scene import Scene

MANNERS = (NOOP, NOOP, NOOP, NOOP, IDLE, JUNK)
ENOUGH = CONNECTIONS * 4  # who sends junk is thrown out all the time
FIRST_ADDRESSES = (100, 110)  # the hosts are tested side by side


def hostile_senders(scene: Scene) -> None:
    """They take all the processes of smtpd they can get; honest senders get in all the same."""
    first = FIRST_ADDRESSES[scene.host.index % 2]
    with (
        further_addresses(scene.host.lab, first, len(MANNERS)) as sources,
        Attack(scene.mx.address, dict(zip(sources, MANNERS, strict=True))) as attack,
    ):
        eventually(lambda: attack.held >= ENOUGH)
        scene.accepted_again()
        scene.hold()
        scene.accepted_again()
