"""The published corpus of real bounces."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# Its source archive has the samples, the wheel has not.
CORPUS, VERSION = "flufl.bounce", "6.0.0"
SAMPLES = 100  # at least so many


@pytest.fixture(scope="session")
def bounce_corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fetch the samples from PyPI."""
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            f"--no-binary={CORPUS}",
            f"{CORPUS}=={VERSION}",
        ],
        cwd=folder,
        check=True,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as package:
        members = [each for each in package if "/tests/data/" in each.name and each.isfile()]
        for member in members:
            content = package.extractfile(member)
            assert content
            (folder / Path(member.name).name).write_bytes(content.read())
    found = sorted(folder.glob("*.txt"))
    assert len(found) >= SAMPLES
    return found
