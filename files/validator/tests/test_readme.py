"""The README's sample configuration is one that the daemon takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mx_validator.config import DEFAULT_CA_FILE, read_config

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.parametrize("with_options", [False, True], ids=["required", "all"])
def test_sample_configuration_is_taken(tmp_path: Path, *, with_options: bool) -> None:
    (sample,) = re.findall(r"(?ms)^```ini\n(.*?)^```$", README.read_text("utf-8"))
    if with_options:
        sample = re.sub(r"(?m)^# ", "", sample)
    file = tmp_path / "mx-validator.conf"
    file.write_text(sample)
    config = read_config(file)
    assert config.oempro_url == "https://oempro.example.com/"
    assert config.ca_file == Path(DEFAULT_CA_FILE)
    assert config.log_level == "info"
