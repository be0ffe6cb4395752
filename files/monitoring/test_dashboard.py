"""The dashboard has no key that Grafana's schema, as its own SDK has it, does not know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()
DASHBOARD = Path(__file__).with_name("dashboard.json")


def unknown(ours: Any, models: Any, path: str = "") -> Iterator[str]:
    """Yield where the models have not kept what they were given."""
    if isinstance(ours, dict) and isinstance(models, dict):
        for key, value in ours.items():
            yield from unknown(value, models.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(models, list) and len(ours) == len(models):
        for number, (one, other) in enumerate(zip(ours, models, strict=True)):
            yield from unknown(one, other, f"{path}[{number}]")
    elif ours != models:
        yield f"{path}: {ours!r} became {models!r}"


def through_the_models(dashboard: dict[str, Any]) -> list[str]:
    encoded = JSONEncoder().encode(Dashboard.from_json(dashboard))
    return list(unknown(dashboard, json.loads(encoded)))


@pytest.fixture
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def test_dashboard(dashboard: dict[str, Any]) -> None:
    assert through_the_models(dashboard) == []


def test_what_the_models_do_not_know_is_found(dashboard: dict[str, Any]) -> None:
    panel = next(each for each in dashboard["panels"] if each["type"] == "stat")
    panel["options"]["colourMode"] = "value"
    panel["fieldConfig"]["defaults"]["units"] = "s"
    panel["targets"][0]["expression"] = "up"
    found = through_the_models(dashboard)
    assert len(found) == 3
    assert all(each.endswith("became None") for each in found)
