"""A progress bar that moves by itself: a job tells how far it is, and the page hears of it by Server-Sent Events.

Install `jobs-async[web]`, run this in its folder, and open http://localhost:8000:

    uvicorn live_progress:app

Or talk to it:

    curl -X POST localhost:8000/jobs -d '{"title": "Sales"}'    → {"job": 1}
    curl -N localhost:8000/jobs/1/events                        → event: progress, data: {"state": "executing", …}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from jobs_async import Job, JobContext, JobNotFound, StoreClosed, Supervisor

jobs = Supervisor("sqlite:///jobs.db")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Live progress</title>
<form id="form"><label>Title <input id="title" value="Sales" required></label> <button>Write</button></form>
<ul id="reports"></ul>
<script>
const form = document.getElementById("form"), title = document.getElementById("title");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/jobs", {method: "POST", body: JSON.stringify({title: title.value})});
  show((await answer.json()).job, title.value);
});

function show(job, name) {
  const item = document.createElement("li"), bar = document.createElement("progress");
  const text = document.createElement("span");
  item.append(name, " ", bar, " ", text);  // as text, whatever it holds
  document.getElementById("reports").append(item);
  const events = new EventSource(`/jobs/${job}/events`);
  const update = (event) => {
    const now = JSON.parse(event.data);
    bar.value = now.fraction;
    text.textContent = now.result ?? now.error ?? now.note;
  };
  events.addEventListener("progress", update);
  events.addEventListener("end", (event) => { update(event); events.close(); });
}
</script>
"""


@jobs.worker(context=True)
async def write_report(ctx: JobContext, title: str, pages: int = 20) -> str:
    for page in range(pages):
        await asyncio.sleep(0.2)  # a slow service
        await ctx.progress((page + 1) / pages, f"page {page + 1} of {pages}")
    return f"{title}, {pages} pages"


def described(job: Job[Any]) -> str:
    """A record as the page needs it. JSON, so that no line of a title or note can pass for one of the stream's; written
    by msgspec, for a result may be a dataclass or hold a datetime.
    """
    told = {
        "state": job.state.name,
        "fraction": 1 if job.result else job.progress.fraction if job.progress else 0,
        "note": job.progress.note if job.progress else None,
        "result": job.result,
        "error": job.last_error.error if job.last_error else None,
    }
    return msgspec.json.encode(told).decode()


async def events_of(job: Job[str]) -> AsyncIterator[ServerSentEvent]:
    """One event for each record that differs; the last is called "end". The browser comes back after a restart."""
    try:
        async for record in jobs.watch(job, interval=0.1):
            yield ServerSentEvent(described(record), event="end" if record.completed_at else "progress")
    except (JobNotFound, StoreClosed):
        return


async def home(_request: Request) -> Response:
    return HTMLResponse(PAGE)


async def post_job(request: Request) -> Response:
    body = await request.json()
    job = await write_report.enqueue(body["title"])
    return JSONResponse({"job": job.id}, status_code=202)


async def stream_job(request: Request) -> Response:
    try:
        job = await jobs.get(request.path_params["job_id"])
    except JobNotFound:
        return JSONResponse({"error": "no such job"}, status_code=404)
    return EventSourceResponse(events_of(job))


app = Starlette(
    routes=[
        Route("/", home),
        Route("/jobs", post_job, methods=["POST"]),
        Route("/jobs/{job_id:int}/events", stream_job),
    ],
    lifespan=jobs.lifespan,
)
