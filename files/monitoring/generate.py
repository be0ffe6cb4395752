#!/usr/bin/env python3
"""Write rules.yml, dashboard.json and the tables of docs/monitoring.md, from metrics.yml.

With --check nothing is written; files that are out of date are named. Either way it fails if an
alert or a panel uses a metric that is not listed, if a listed one is not used, if an alert has no
test in rules_test.yml, or if it names a section that docs/operating.md does not have.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # ansible-core brings it

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
NOTE = "Written by generate.py from metrics.yml."
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
WINDOW = "$__rate_interval"
SIZES = {"stat": (4, 4), "timeseries": (8, 8)}  # width, of 24, and height of a panel
STAT = {
    "colorMode": "value",
    "graphMode": "none",
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
}
TIMESERIES = {
    "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
SOURCE = yaml.safe_load((HERE / "metrics.yml").read_text())
METRICS = {metric["name"]: metric for each in SOURCE["exporters"] for metric in each["metrics"]}
SERIES = {
    f"{name}{suffix}": name
    for name, metric in METRICS.items()
    for suffix in (("_bucket", "_count", "_sum") if metric["type"] == "histogram" else ("",))
}
PANELS = [panel for row in SOURCE["dashboard"] for panel in row["panels"]]


class Dumper(yaml.SafeDumper):  # type: ignore[misc] # it has no types
    """Writes YAML as yamllint wants it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists, too."""
        super().increase_indent(flow, indentless and flow)

    def represent_text(self, text: str) -> object:
        """Keep the lines of a text."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)


Dumper.add_representer(str, Dumper.represent_text)


def names(expression: str) -> set[str]:
    """Return the names of all series that an expression reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    labels = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
    bare = re.sub(rf"{{[^}}]*}}|\[[^]]*\]|{labels}", " ", bare)
    found = re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return set(found) - {"and", "or", "unless", "bool", "offset"}


def faults() -> Iterator[str]:
    """Yield what is wrong in metrics.yml."""
    for name, metric in METRICS.items():
        if metric.keys() != {"name", "type", "means"}:  # as behind a comma that is not quoted
            yield f"{name} has other keys than name, type and means"
    used = set()
    uses = [(alert["name"], alert["expr"]) for alert in SOURCE["alerts"]]
    uses += [(panel["title"], query["expr"]) for panel in PANELS for query in panel["queries"]]
    for name, expression in uses:
        used |= (found := names(expression))
        yield from (f"{name} uses {each}, not listed" for each in sorted(found - SERIES.keys()))
    unused = METRICS.keys() - {SERIES.get(name) for name in used}
    yield from (f"{name} is listed and not used" for name in sorted(unused))
    for panel in PANELS:
        windows = {
            each for query in panel["queries"] for each in re.findall(r"\[\w+\]", query["expr"])
        }
        yield from (f"{panel['title']} has the window {each}, not {WINDOW}" for each in windows)
    tested = (HERE / "rules_test.yml").read_text()
    headings = re.findall(r"(?m)^#+ (.*)$", (DOCS / "operating.md").read_text())
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for alert in SOURCE["alerts"]:
        if f'alertname="{alert["name"]}"' not in tested:
            yield f"rules_test.yml never sees {alert['name']} fire"
        if alert["anchor"] not in anchors:
            yield f"docs/operating.md has no section {alert['anchor']}"
        if alert["severity"] not in {"critical", "warning"}:
            yield f"{alert['name']} is neither critical nor a warning"


def rule(alert: dict[str, Any]) -> dict[str, Any]:
    """Return an alert as Prometheus has it."""
    annotations = {
        "summary": f"{{{{ $labels.host }}}}: {alert['means']}",
        "value": alert.get("value"),
        "action": alert["action"],
        "runbook": f"docs/operating.md#{alert['anchor']}",
    }
    return {
        "alert": alert["name"],
        "expr": alert["expr"],
        **({"for": alert["for"]} if "for" in alert else {}),
        "labels": {"severity": alert["severity"]},
        "annotations": {name: text for name, text in annotations.items() if text},
    }


def target(number: int, query: dict[str, str], kind: str) -> dict[str, Any]:
    """Return a query as Grafana has it, for the hosts that are chosen."""
    return {
        "datasource": PROMETHEUS,
        "expr": re.sub(
            rf"\b({'|'.join(SERIES)})\b(\{{?)",
            lambda found: f'{found[1]}{{host=~"$host"{", " if found[2] else "}"}',
            query["expr"],
        ),
        "instant": kind == "stat",
        "interval": "1m",  # the textfile changes no more often: a window has to hold some of them
        "legendFormat": query.get("legend", "{{host}}"),
        "range": kind != "stat",
        "refId": "ABCDEFGH"[number],
    }


def panel_json(panel: dict[str, Any]) -> dict[str, Any]:
    """Return a panel as Grafana has it, without its place."""
    kind = panel.get("type", "timeseries")
    steps = panel.get("steps", {"blue": None})
    options = {
        str(value): {"color": colour, "index": number, "text": text}
        for number, (value, (text, colour)) in enumerate(panel.get("values", {}).items())
    }
    defaults = {
        "mappings": [{"type": "value", "options": options}] if options else [],
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colour, "value": least} for colour, least in steps.items()],
        },
        "unit": panel["unit"],
    }
    if kind == "timeseries":
        defaults |= {"custom": {"fillOpacity": 10, "showPoints": "never"}, "min": 0}
    return {
        "type": kind,
        "title": panel["title"],
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": STAT | {"textMode": panel.get("show", "auto")} if kind == "stat" else TIMESERIES,
        "targets": [target(number, query, kind) for number, query in enumerate(panel["queries"])],
    }


def rows() -> Iterator[dict[str, Any]]:
    """Yield the dashboard's rows and panels; all rows but the first are closed."""
    numbers, y = itertools.count(1), 0
    for row in SOURCE["dashboard"]:
        place, is_open = {"h": 1, "w": 24, "x": 0, "y": y}, y == 0
        header = {"type": "row", "id": next(numbers), "title": row["row"], "gridPos": place}
        panels: list[dict[str, Any]] = []
        for panel in row["panels"]:
            width, height = SIZES[panel.get("type", "timeseries")]
            width = panel.get("width", width)
            x = place["x"] + place["w"]  # beside the one before, or below it
            x, y = (x, place["y"]) if x + width <= 24 else (0, place["y"] + place["h"])
            place = {"h": height, "w": width, "x": x, "y": y}
            panels.append({"id": next(numbers), **panel_json(panel), "gridPos": place})
        y = place["y"] + place["h"] if is_open else header["gridPos"]["y"] + 1
        yield header | {"collapsed": not is_open, "panels": [] if is_open else panels}
        yield from panels if is_open else []


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    host = {
        "name": "host",
        "label": "Host",
        "type": "query",
        "datasource": PROMETHEUS,
        "query": 'label_values(up{job=~"oempro_mx_.*"}, host)',
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # when the time range changes
        "sort": 1,
    }
    source = {"name": "datasource", "label": "Data source", "type": "datasource"}
    return {
        "uid": "oempro-mx",
        "title": "Oempro MX",
        "description": NOTE,
        "tags": ["oempro-mx"],
        "timezone": "browser",
        "graphTooltip": 1,
        "refresh": "1m",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": [source | {"query": "prometheus"}, host]},
        "panels": list(rows()),
    }


def documentation() -> str:
    """Return docs/monitoring.md with new tables."""
    alerts = ["| alert | severity | after | means | what to do |\n|---|---|---|---|---|\n"]
    for each in SOURCE["alerts"]:
        action = f"{each['action']} ([more](operating.md#{each['anchor']}))".replace("|", "\\|")
        after = each.get("for", "at once")
        alerts.append(
            f"| `{each['name']}` | {each['severity']} | {after} | {each['means']} | {action} |\n"
        )
    metrics = ["| metric | type | means | from |\n|---|---|---|---|\n"]
    metrics += [
        f"| `{metric['name']}` | {metric['type']} | {metric['means']} | {each['name']} |\n"
        for each in SOURCE["exporters"]
        for metric in each["metrics"]
    ]
    text = (DOCS / "monitoring.md").read_text()
    for name, lines in (("ALERTS", alerts), ("METRICS", metrics)):
        begin, end = f"<!-- BEGIN_{name} -->\n", f"<!-- END_{name} -->"
        text = f"{text.split(begin)[0]}{begin}\n{''.join(lines)}\n{end}{text.split(end)[1]}"
    return text


def main() -> str | int:
    """Write the files, or only check them; return what is wrong."""
    if found := list(faults()):
        return "\n".join(f"metrics.yml: {each}" for each in found)
    groups = {"groups": [{"name": "oempro_mx", "rules": [rule(each) for each in SOURCE["alerts"]]}]}
    rules = yaml.dump(groups, Dumper=Dumper, sort_keys=False, width=105, allow_unicode=True)
    files = {
        HERE / "rules.yml": f"---\n# {NOTE}\n{rules}",
        HERE / "dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
        DOCS / "monitoring.md": documentation(),
    }
    old = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        return "\n".join(f"{path.name} is out of date: run {__file__}" for path in old) or 0
    for path in old:
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
