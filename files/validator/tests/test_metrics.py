from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from conftest import PATIENCE
from mx_validator import metrics
from mx_validator.decider import Source
from mx_validator.metrics import Metrics, served
from mx_validator.status import Observer, Status
from test_status_text import AWAY, WELL


class Seen(Observer):
    """An observer that sees what it is told."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def look(self) -> Status:
        return self.status

    def answers(self) -> dict[tuple[str, Source], int]:
        return {("ALLOW", "known good"): 7}


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def fetch(seen: Seen, path: str, address: str = "127.0.0.1") -> tuple[int, str]:
    shown = Metrics()
    shown.add(seen)
    shown.observe("deny", 0.3)
    with served(address, 0, shown) as port:
        host = f"[{address}]" if ":" in address else address
        return await asyncio.to_thread(get, f"http://{host}:{port}{path}")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_metrics(address: str) -> None:
    code, text = await fetch(Seen(WELL), "/metrics?x=1", address)
    assert code == 200
    for line in (
        'mx_validator_platform_answers_total{outcome="deny"} 1.0',
        'mx_validator_platform_answer_seconds_bucket{le="0.25"} 0.0',
        'mx_validator_platform_answer_seconds_bucket{le="0.5"} 1.0',
        'mx_validator_answers_total{source="known good",verdict="ALLOW"} 7.0',
        "mx_validator_up_seconds 10800.0",
        "mx_validator_platform_up 1.0",
        "mx_validator_platform_failing_seconds 0.0",
        "mx_validator_platform_breaker_open 0.0",
        "mx_validator_known_good_domains 42.0",
        "mx_validator_known_good_oldest_seconds 259200.0",
        "mx_validator_store_failing_seconds 0.0",
        "mx_validator_store_damaged 0.0",
        "mx_validator_store_lost_domains 0.0",
        "mx_validator_queue_free_inodes 70000.0",
        "mx_validator_queue_short 0.0",
        "mx_validator_loop_lag_seconds 0.0004",
    ):
        assert f"{line}\n" in text


async def test_metrics_in_trouble() -> None:
    _, text = await fetch(Seen(AWAY), "/metrics")
    assert "mx_validator_platform_up 0.0\n" in text
    assert "mx_validator_platform_failing_seconds 600.0\n" in text
    assert "mx_validator_platform_breaker_open 1.0\n" in text


async def test_metrics_of_a_damaged_file() -> None:
    _, text = await fetch(Seen(replace(WELL, store_damaged=True, store_lost=3)), "/metrics")
    assert "mx_validator_store_damaged 1.0\n" in text
    assert "mx_validator_store_lost_domains 3.0\n" in text
    _, text = await fetch(Seen(replace(WELL, store_damaged=True, store_lost=None)), "/metrics")
    assert "mx_validator_store_lost_domains" not in text


async def test_health() -> None:
    assert await fetch(Seen(AWAY), "/healthz") == (200, "ok\n")
    code, _ = await fetch(Seen(WELL), "/")
    assert code == 404


async def test_health_of_a_loop_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LOOP_SECONDS", 0.05)
    shown = Metrics()
    shown.add(Seen(WELL))
    with served("127.0.0.1", 0, shown) as port:
        # Not in a thread: the loop waits here.
        assert get(f"http://127.0.0.1:{port}/healthz") == (
            503,
            "the event loop does not answer\n",
        )


async def test_a_client_that_says_nothing_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.05)
    shown = Metrics()
    shown.add(Seen(WELL))
    with served("127.0.0.1", 0, shown) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/healthz") == (200, "ok\n")
        assert await reader.read() == b""
        writer.close()
