from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from oempro_mx.metrics import collect
from oempro_mx.metrics.log import Counts
from oempro_mx.settings import Settings

AT = "Nov 27 16:24:03 mx1 postfix"
ACCEPTED = f"{AT}/cleanup[3]: 4jbf7T4NK5zCXNL: message-id=<a@b>\n"
SENT = f"{AT}/lmtp[3]: 4jbf7T4NK5zCXNL: to=<a>, relay=mx1, dsn=2.0.0, status=sent (250)\n"
DEFERRED = SENT.replace("2.0.0, status=sent", "4.4.1, status=deferred")
REFUSED = f"{AT}/smtpd[3]: NOQUEUE: reject: RCPT from a.b[192.0.2.1]: 554 5.7.1 <x>: No\n"


def counted(state: Path, log: Path) -> Counts:
    counts = Counts.read(state)
    counts.update(log)
    counts.write(state)
    return counts


def test_log_is_counted_once_also_when_it_is_rotated(tmp_path: Path) -> None:
    state, log, old = (tmp_path / name for name in ("state", "log", "log.1"))
    assert counted(state, log).accepted == 0  # there is no log yet
    log.write_text(ACCEPTED + SENT + DEFERRED + REFUSED + REFUSED + "half a line: " + AT)
    for _ in range(2):
        counts = counted(state, log)
        assert counts.accepted == 1
        assert counts.deliveries == {"sent": 1, "deferred": 1}
        assert counts.refused == {"554 5.7.1": 2}
    with log.open("a") as file:
        file.write("\n" + ACCEPTED)
    log.rename(old)
    log.write_text(ACCEPTED + ACCEPTED)
    assert counted(state, log).accepted == 4
    assert counted(state, log).accepted == 4
    log.write_text(ACCEPTED)  # cut by somebody
    assert counted(state, log).accepted == 5
    state.write_text("damaged")
    assert counted(state, log).accepted == 1


@pytest.mark.parametrize(
    "line",
    [
        f"{AT}/smtpd[3]: A: reject: RCPT from a[1]: 554 5.7.1 <> from=<{ACCEPTED.strip()}>\n",
        f"{AT}/cleanup[3]: A: message-id=<{SENT.strip()}>\n",
        f"{AT}/smtpd[3]: A: client=a[1], sasl_username={DEFERRED.strip()}\n",
    ],
)
def test_sender_cannot_make_up_lines(line: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(line)
    counts = counted(tmp_path / "state", log)
    assert sum(counts.deliveries.values()) == 0
    assert counts.accepted + sum(counts.refused.values()) <= 1


def samples(metrics: Iterator[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def test_queue(tmp_path: Path) -> None:
    for directory in ("maildrop", "incoming", "active", "deferred/A", "hold"):
        (tmp_path / directory).mkdir(parents=True)
    empty = samples(collect.queue(tmp_path))
    assert empty["oempro_mx_queue_oldest_seconds",] == 0
    (tmp_path / "deferred/A/4jbf7T4NK5zCXNL").touch()
    (tmp_path / "hold/3jbf7T4NK5zCXNL").touch()
    found = samples(collect.queue(tmp_path))
    assert found["oempro_mx_queue_messages", "deferred"] == 1
    assert found["oempro_mx_queue_messages", "hold"] == 1
    assert found["oempro_mx_queue_messages", "active"] == 0
    on_hold_too = samples(collect.queue(tmp_path))["oempro_mx_queue_oldest_seconds",]
    assert on_hold_too < 10 * 365 * 86400  # not that of the one on hold


def test_what_cannot_be_read_is_missing_and_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "LOG", tmp_path / "log")

    def broken() -> Iterator[Metric]:
        raise OSError("no way in")

    monkeypatch.setattr(collect, "log", broken)
    problems = collect.write(settings, tmp_path)
    assert "no way in" in problems
    text = (tmp_path / collect.FILE).read_text()
    assert 'oempro_mx_info{version="' in text
    assert "oempro_mx_queue_messages" in text
    assert "oempro_mx_deliveries" not in text
