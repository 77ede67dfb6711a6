"""Jobs and events out of nothing, metrics read back by Prometheus' own parser, and an app on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import uvicorn
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from jobs_async import Job, JobState
from jobs_async.observe.families import Family

PATIENCE = 30.0
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

Labels = dict[str, str]


def job(queue: str = "default", worker: str = "resize", **fields: Any) -> Job[Any]:
    fields = {"attempt": 1, "state": JobState.completed, "attempted_at": NOON + timedelta(seconds=2), **fields}
    return Job(
        id=fields.pop("id", 1),
        queue=queue,
        worker=worker,
        args_json="{}",
        priority=0,
        max_attempts=20,
        scheduled_at=fields.pop("scheduled_at", NOON),
        inserted_at=fields.pop("inserted_at", NOON),
        **fields,
    )


def read(family: Family[Any]) -> dict[tuple[str, ...], float]:
    """What a family without buckets holds."""
    return {tuple(sample.labels.values()): sample.value for sample in family.samples()}


def parsed(text: str) -> dict[str, Metric]:
    """A page of metrics by the names that expressions use, save what histograms add to theirs."""
    return {
        metric.name + "_total" * (metric.type == "counter"): metric for metric in text_string_to_metric_families(text)
    }


def value(text: str, name: str, **labels: str) -> float:
    """One number of a page; KeyError where it is not there."""
    return numbers(text)[name, tuple(sorted(labels.items()))]


def numbers(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every number of a page, by its name and labels."""
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples(text)}


def samples(text: str) -> Iterator[Any]:
    for metric in text_string_to_metric_families(text):
        yield from metric.samples


class CountingLock:
    """A lock that counts how often it is taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __enter__(self) -> None:
        self.taken += 1

    def __exit__(self, *_exc: object) -> None: ...


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An app under a real server on loopback, in this event loop, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        task = asyncio.get_running_loop().create_task(server.serve([listener]))
        try:
            await until(lambda: server.started or task.done())
            base = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=base, timeout=PATIENCE) as client:
                yield client
        finally:
            server.should_exit = True
            await asyncio.wait({task}, timeout=PATIENCE)
    task.result()


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not fact():
            await asyncio.sleep(0.005)
