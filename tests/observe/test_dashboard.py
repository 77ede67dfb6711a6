"""The dashboard and the alert rules name nothing that a running app does not export; the guide lists all of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import Metric

from jobs_async import JobState, Supervisor, Telemetry
from jobs_async.observe import Gauges, Observability
from jobs_async.observe.fold import OUTCOMES
from jobs_async.observe.metrics import Metrics
from jobs_async.observe.observability import SERVICE
from tests.observe.expressions import labels_in, matched_in, metrics_in
from tests.observe.support import numbers, parsed, serving

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "examples" / "grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "jobs-async.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((GRAFANA / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
TARGET_LABELS = {"instance", "job"}
"""What Prometheus itself adds to whatever it scrapes."""


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


EXPRESSIONS = dict(expressions())


@pytest.fixture(scope="module")
def scraped() -> dict[str, Metric]:
    """What Prometheus gets from a server, by the names that expressions use."""
    text = asyncio.run(page())
    assert numbers(text)
    found = parsed(text)
    for metric in list(found.values()):
        if metric.type == "histogram":
            found |= {f"{metric.name}{suffix}": metric for suffix in ("_bucket", "_count", "_sum")}
    return found


async def page() -> str:
    """Scraped over HTTP, beside jobs that run."""
    observability = Observability("shop").prometheus()
    telemetry = Telemetry()
    telemetry.attach(observability.telemetry_handler())
    async with Supervisor(telemetry=telemetry) as jobs:

        @jobs.worker(max_attempts=1)
        async def divide(by: int) -> float:
            return 1 / by

        for by in (1, 0):
            await jobs.wait(await divide.enqueue(by), timeout=20)
        tick = {"cron": "nightly", "cron_at": "2026-03-01T02:00:00+00:00"}
        await jobs.wait(await divide.options(meta=tick).enqueue(1), timeout=20)
        for _ in range(2):
            await divide.options(unique_key="once", delay=3600).enqueue(2)
        gauges = Gauges(jobs, observability)
        await gauges.sample()
        async with serving(observability.asgi()) as client:
            return (await client.get("/metrics")).text


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_names_only_metrics_that_are_exported(where: str, scraped: dict[str, Metric]) -> None:
    named = metrics_in(EXPRESSIONS[where])
    assert named
    assert named <= scraped.keys()


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_counts_on_labels_that_are_there(where: str, scraped: dict[str, Metric]) -> None:
    expression = EXPRESSIONS[where]
    there = {label for name in metrics_in(expression) for one in scraped[name].samples for label in one.labels}
    assert labels_in(expression) <= there | TARGET_LABELS
    assert matched_in(expression, "outcome") <= set(OUTCOMES.values())
    assert matched_in(expression, "state") <= {state.name for state in JobState}


def test_an_expression_is_taken_apart() -> None:
    expression = (
        'sum by (le, queue) (rate(jobs_run_seconds_bucket{worker=~"a|b}", queue!="x"}[5m])) > 0.99e3\n'
        "unless on (queue) jobs_queue_paused == 1 and time() - misspelt offset 5m"
    )
    assert metrics_in(expression) == {"jobs_run_seconds_bucket", "jobs_queue_paused", "misspelt"}
    assert labels_in(expression) == {"le", "queue", "worker"}
    assert matched_in('{outcome=~"failed|lost", state="x"}', "outcome") == {"failed", "lost"}


def test_a_misspelt_metric_would_be_found(scraped: dict[str, Metric]) -> None:
    assert not metrics_in("sum(rate(jobs_finish_total[5m]))") <= scraped.keys()


def test_the_board_has_what_grafana_needs_of_it() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert (BOARD["title"], BOARD["uid"]) == ("jobs_async", "jobs-async")
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_the_panels_of_the_board_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


def test_variables_of_the_board_are_declared() -> None:
    declared = {variable["name"] for variable in BOARD["templating"]["list"]}
    text = json.dumps(BOARD)
    assert declared == {"datasource", "queue"}
    assert "$queue" in text
    assert "${datasource}" in text
    assert "$worker" not in text


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_says_how_bad_it_is_and_what_it_is_about(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)


def test_the_guide_lists_every_metric_and_its_labels() -> None:
    guide = (ROOT / "docs" / "guides" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+_\w+)` \|([^|]*)\|", guide, re.MULTILINE)
    listed = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert listed.pop("jobs_service_info") == SERVICE
    assert listed == {family.name: family.labels for family in Metrics()}
