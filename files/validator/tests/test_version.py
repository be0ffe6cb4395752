"""The whole project has one version: the file VERSION is its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mx_validator import cli

PROJECT = Path(__file__).resolve().parents[3]
VERSION = (PROJECT / "VERSION").read_text().removesuffix("\n")


def test_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"mx-validator {VERSION}\n"


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("galaxy.yml", r"(?m)^version: (\S+)"),
        ("CHANGELOG.md", r"(?m)^## \[(\d\S*)\]"),  # the topmost release
    ],
)
def test_file_names_it(file: str, pattern: str) -> None:
    found = re.search(pattern, (PROJECT / file).read_text())
    assert found
    assert found[1] == VERSION
