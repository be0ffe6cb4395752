"""Running a playbook as an operator does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


def ansible_playbook(
    folder: Path, *arguments: str, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in a folder; what it says, errors too, is its standard output."""
    return subprocess.run(
        ["ansible-playbook", *arguments],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def strangers_playbook(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in somebody's own folder, with its ansible.cfg and no other settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return ansible_playbook(folder, *arguments, env=env)
