"""What an operator does to a mail server with his own hands, and often too fast."""

from __future__ import annotations

import dataclasses

from faults import APT
from scene import RECOVERY_SECONDS, Disaster, Scene

PACKAGES = "postfix postfix-pcre dovecot-core dovecot-imapd dovecot-lmtpd dovecot-pop3d supervisor"
IMPATIENCE = 10  # times in a row
OTHER_USERNAME = "fetcher"
OTHER_API_KEY = "chaos-API-key-8c21"
# The newest version but the one that is installed, of those packages of which there are two.
OTHER_VERSIONS = r"""
for package in PACKAGES; do
    installed=$(dpkg-query --show --showformat='${Version}' $package)
    other=$(apt-cache madison $package | awk -v i="$installed" '$3 != i {print $3; exit}')
    echo $package${other:+=$other}
done
"""


def repeated(name: str, command: str) -> Disaster:
    """Run a command as often as somebody does who cannot wait."""
    again = f"for _ in $(seq {IMPATIENCE}); do {command} || exit 1; done"
    return Disaster(f"operator: {name}", lambda scene: scene.shell(again))


def on_the_queue(name: str, *steps: str) -> Disaster:
    """Run commands on a queue that is not empty, and again on one that is being delivered."""

    def strike(scene: Scene) -> None:
        scene.shell("systemctl stop dovecot")
        scene.accepted_again()
        for step in steps:
            scene.shell(step)
        scene.shell("systemctl start dovecot && postqueue -f")
        for step in steps:
            scene.shell(step)
        scene.shell("postqueue -f")
        scene.fetched_again()

    return Disaster(f"operator: {name}", strike)


def postfix_stopped(scene: Scene) -> None:
    scene.shell("systemctl stop postfix")
    scene.hold()
    scene.shell("systemctl start postfix")


def postfix_by_hand(scene: Scene) -> None:
    """Stopped and started behind the back of systemd, which then takes it over."""
    scene.shell("postfix stop; postfix start || postfix status")
    supervised = "grep -q postfix /proc/$(pgrep -o -x master)/cgroup"
    scene.shell(f"timeout {RECOVERY_SECONDS} sh -c 'until {supervised}; do sleep 0.2; done'")


def ruleset_flushed(scene: Scene) -> None:
    """Debian's nftables.conf begins with `flush ruleset`; our table comes back by itself."""
    scene.shell("systemctl restart nftables")
    there = "nft list table inet oempro_mx > /dev/null"
    scene.shell(f"timeout {RECOVERY_SECONDS} sh -c 'until {there}; do sleep 0.1; done'")
    scene.accepted_again()
    scene.cannot_send()


def credentials_changed(scene: Scene) -> None:
    """The platform gets another name and key, its key before the host has it; then back."""
    mx, key = scene.collectors.mx, scene.stub.api_key
    for new_name, new_key in ((OTHER_USERNAME, OTHER_API_KEY), (mx.username, key)):
        scene.stub.api_key = new_key
        scene.site(
            "--tags=dovecot_mailbox,dovecot_run,validator_config,validator_run",
            catchall_username=new_name,
            oempro_admin_api_key=new_key,
        )
        scene.collectors.mx = dataclasses.replace(mx, username=new_name)
        scene.fetched_again()


def packages_upgraded(scene: Scene) -> None:
    """From the version before, where there is one, with all maintainer scripts, to the newest."""
    others = scene.shell(OTHER_VERSIONS.replace("PACKAGES", PACKAGES)).split()
    scene.shell(f"{APT} install --reinstall --allow-downgrades {' '.join(others)}")
    scene.accepted_again()
    scene.shell(f"{APT} install {PACKAGES}")
    # Debian's dovecot-imapd stops Dovecot then, and leaves it to the operator to start it again.
    scene.shell(f"dpkg-reconfigure --frontend=noninteractive {PACKAGES} && systemctl start dovecot")
    scene.cannot_send()
    scene.fetched_again()


HANDS = (
    on_the_queue("postsuper -r ALL", "postsuper -r ALL"),
    on_the_queue("postsuper -h ALL, -H ALL", "postsuper -h ALL", "postsuper -H ALL"),
    repeated("postqueue -f", "postqueue -f"),
    Disaster("operator: systemctl stop postfix", postfix_stopped),
    Disaster("operator: postfix stop, postfix start", postfix_by_hand),
    Disaster("operator: systemctl restart nftables", ruleset_flushed),
    repeated("doveadm force-resync", "doveadm force-resync -u catchall INBOX"),
    Disaster("operator: user renamed, new API key", credentials_changed),
    Disaster("operator: packages upgraded", packages_upgraded),
)
