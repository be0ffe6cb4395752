from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

from mx_validator import metrics
from mx_validator.metrics import Metrics, serving
from mx_validator.model import Source
from mx_validator.status import Status
from support import PATIENCE
from test_status_text import AWAY, WELL


def metrics_of(status: Status) -> Metrics:
    """Metrics that show a status, one answer and one lookup."""
    counts: dict[tuple[str, Source], int] = {("ALLOW", "known good"): 7}
    shown = Metrics()
    shown.register(lambda: status, lambda: counts)
    shown.record_lookup("deny", 0.3)
    return shown


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def fetch(status: Status, path: str, address: str = "127.0.0.1") -> tuple[int, str]:
    with serving(address, 0, metrics_of(status)) as port:
        host = f"[{address}]" if ":" in address else address
        return await asyncio.to_thread(get, f"http://{host}:{port}{path}")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_metrics(address: str) -> None:
    code, text = await fetch(WELL, "/metrics?x=1", address)
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


async def test_health_does_not_read_the_status() -> None:
    shown = Metrics()
    read: list[Status] = []

    def read_status() -> Status:
        read.append(WELL)
        return WELL

    shown.register(read_status, dict)
    before = len(read)
    with serving("127.0.0.1", 0, shown) as port:
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/healthz") == (200, "ok\n")
        assert len(read) == before
        assert (await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics"))[0] == 200
        assert len(read) == before + 1


async def test_names_and_help_texts() -> None:
    """Dashboards and alarms of operators rely on the names."""
    _, text = await fetch(WELL, "/metrics")
    described = dict(re.findall(r"(?m)^# HELP mx_validator_(\S+) (.+)$", text))
    assert set(described) == {
        *("up_seconds", "loop_lag_seconds", "answers_total", "denied_domains"),
        *("platform_up", "platform_key_refused", "platform_failing_seconds"),
        *("platform_breaker_open", "platform_questions", "platform_lookup_seconds"),
        *("platform_answers_total", "platform_answers_created"),
        *("platform_answer_seconds", "platform_answer_seconds_created"),
        *("known_good_domains", "known_good_oldest_seconds", "known_good_newest_seconds"),
        *("store_unwritten_domains", "store_failing_seconds"),
        *("store_damaged", "store_lost_domains", "queue_free_inodes", "queue_short"),
    }
    assert described["loop_lag_seconds"] == "Event loop lag at the last heartbeat."


async def test_metrics_in_trouble() -> None:
    _, text = await fetch(AWAY, "/metrics")
    assert "mx_validator_platform_up 0.0\n" in text
    assert "mx_validator_platform_failing_seconds 600.0\n" in text
    assert "mx_validator_platform_breaker_open 1.0\n" in text


async def test_metrics_of_a_damaged_file() -> None:
    _, text = await fetch(replace(WELL, store_damaged=True, store_lost=3), "/metrics")
    assert "mx_validator_store_damaged 1.0\n" in text
    assert "mx_validator_store_lost_domains 3.0\n" in text
    _, text = await fetch(replace(WELL, store_damaged=True, store_lost=None), "/metrics")
    assert "mx_validator_store_lost_domains" not in text


async def test_health() -> None:
    assert await fetch(AWAY, "/healthz") == (200, "ok\n")
    code, _ = await fetch(WELL, "/")
    assert code == 404


async def test_health_of_a_loop_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LOOP_TIMEOUT_SECONDS", 0.05)
    with serving("127.0.0.1", 0, metrics_of(WELL)) as port:
        # Not in a thread: the loop waits here.
        assert get(f"http://127.0.0.1:{port}/healthz") == (
            503,
            "the event loop does not answer\n",
        )


async def test_a_client_that_says_nothing_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics._MetricsHandler, "timeout", 0.05)
    with serving("127.0.0.1", 0, metrics_of(WELL)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/healthz") == (200, "ok\n")
        assert await reader.read() == b""
        writer.close()
