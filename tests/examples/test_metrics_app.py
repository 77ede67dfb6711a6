"""The metrics app under a real server: jobs run, and the page that Prometheus scrapes tells of them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from examples import metrics_app
from jobs_async.observe import Gauges
from tests.observe.support import serving, value

HERE = {"queue": "default", "worker": "make_thumbnail"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def make(client: httpx.AsyncClient, width: int) -> None:
    """Order a thumbnail, and wait for it."""
    answer = await client.post("/thumbnails", json={"width": width})
    assert answer.status_code == 202
    await metrics_app.jobs.wait(int(answer.json()["job"]), timeout=20)


async def test_what_jobs_do_is_on_the_page() -> None:
    async with serving(metrics_app.app) as client:
        for width in (64, 128, 0):
            await make(client, width)
        await Gauges(metrics_app.jobs, metrics_app.observability).sample()
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    assert value(text, "jobs_enqueued_total", **HERE) == 3
    assert value(text, "jobs_finished_total", **HERE, outcome="completed") == 2
    assert value(text, "jobs_finished_total", **HERE, outcome="discarded") == 1
    assert value(text, "jobs_run_seconds_count", **HERE) >= 2
    assert value(text, "jobs_queue_depth", queue="default", state="completed") == 2
    assert value(text, "jobs_queue_limit", queue="default") == 10
    assert value(text, "jobs_service_info", service="thumbnails", version="1.0", environment="example") == 1
