"""The progress bar under a real server: the stream is read to its end, left early, and cut by a stop of the server."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sse_starlette.sse import AppStatus

from examples import live_progress
from jobs_async import JobState

PATIENCE = 30.0
Event = tuple[str, dict[str, Any]]


@dataclass
class Measured:
    at: datetime
    pages: int


@asynccontextmanager
async def serving() -> AsyncIterator[httpx.AsyncClient]:
    """The app on loopback, in this event loop, and a client of it; afterwards, nothing of it is left running."""
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(live_progress.app, log_level="warning", timeout_graceful_shutdown=5))
        task = asyncio.get_running_loop().create_task(server.serve([listener]))
        try:
            await until(lambda: server.started or task.done())
            port = listener.getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                yield client
        finally:
            server.should_exit = True
            await asyncio.wait({task}, timeout=PATIENCE)
            AppStatus.should_exit = True  # what a signal would have told the watcher that all streams share
            await until(lambda: not asyncio.all_tasks() - before)
            AppStatus.should_exit = False
    task.result()


async def until(fact: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not fact():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def start(client: httpx.AsyncClient, title: str) -> int:
    answer = await client.post("/jobs", json={"title": title})
    assert answer.status_code == 202
    return int(answer.json()["job"])


async def events(answer: httpx.Response) -> AsyncIterator[Event]:
    """The stream, event by event."""
    name = ""
    async for line in answer.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


async def test_the_stream_shows_progress_up_to_the_result() -> None:
    title = 'a "title"\nevent: end\ndata: {}\n\n<script>'
    async with serving() as client:
        job_id = await start(client, title)
        async with client.stream("GET", f"/jobs/{job_id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            seen = [event async for event in events(answer)]
        *before, (name, last) = seen
        assert {name for name, _ in before} == {"progress"}
        fractions = [told["fraction"] for _, told in before]
        assert fractions == sorted(fractions)
        assert len(set(fractions)) >= 3
        assert (name, last["state"], last["fraction"]) == ("end", "completed", 1)
        assert last["result"] == f"{title}, 20 pages"
        async with client.stream("GET", f"/jobs/{job_id}/events") as answer:
            assert [event async for event in events(answer)] == [seen[-1]], "who comes late sees the end"


async def test_a_client_that_leaves_early_leaves_nothing_running_but_the_job() -> None:
    async with serving() as client:
        job = await live_progress.write_report.enqueue("Sales", pages=1000)
        async with client.stream("GET", f"/jobs/{job.id}/events") as answer:
            async for name, _ in events(answer):
                assert name == "progress"
                break
            assert working()
        await until(lambda: not working())
        assert (await live_progress.jobs.get(job)).state is JobState.executing
        await live_progress.jobs.cancel(job)


def working() -> list[str]:
    """The tasks that serve a stream: the server's own for a request, and whoever asks the store for it."""
    names = [task.get_name() for task in asyncio.all_tasks() if "run_asgi" in repr(task.get_coro())]
    return names + [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "jobs_async waiting"]


@pytest.mark.parametrize("manner", ["stopped", "deleted"])
async def test_a_stream_that_will_see_no_end_is_closed(manner: str) -> None:
    async with serving() as client:
        job = await live_progress.write_report.options(delay=3600).enqueue("Sales")
        async with client.stream("GET", f"/jobs/{job.id}/events") as answer:
            stream = events(answer)
            assert (await anext(stream))[1]["state"] == "scheduled"
            if manner == "stopped":
                await live_progress.jobs.stop()
            else:
                await live_progress.jobs.delete(job)
            assert [event async for event in stream] == []


@live_progress.jobs.worker
async def measure() -> Measured:
    return Measured(datetime(2026, 1, 31, tzinfo=UTC), 7)


async def test_a_result_that_is_no_plain_json_reaches_the_page() -> None:
    async with serving() as client:
        job = await measure.enqueue()
        async with client.stream("GET", f"/jobs/{job.id}/events") as answer:
            seen = [event async for event in events(answer)]
    name, last = seen[-1]
    assert (name, last["result"]) == ("end", {"at": "2026-01-31T00:00:00Z", "pages": 7})


async def test_an_unknown_job_is_not_found() -> None:
    async with serving() as client:
        assert (await client.get("/jobs/12345/events")).status_code == 404


async def test_the_page_has_no_inline_handlers_and_puts_text_in_as_text() -> None:
    async with serving() as client:
        page = (await client.get("/")).text
    assert "<progress" not in page
    assert 'createElement("progress")' in page
    assert "EventSource" in page
    assert not re.search(r"<[^>]*\son\w+\s*=", page)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write", page)
