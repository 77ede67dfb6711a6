"""Metrics beside a web app: what jobs do, as numbers for Prometheus, at /metrics.

Install `jobs-async[web,prometheus]`, run this in its folder, and talk to it:

    uvicorn metrics_app:app

    curl -X POST localhost:8000/thumbnails -d '{"width": 64}'     → {"job": 1}
    curl localhost:8000/metrics                                   → # HELP jobs_service_info …

Let Prometheus scrape it, give it `grafana/alerts.yml` as a rule file, and import `grafana/jobs-async.json` in Grafana.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from jobs_async import Supervisor, Telemetry
from jobs_async.observe import Gauges, Observability

observability = Observability("thumbnails", version="1.0", environment="example").prometheus()
telemetry = Telemetry()
telemetry.attach(observability.telemetry_handler())
jobs = Supervisor("sqlite:///jobs.db", telemetry=telemetry)


@jobs.worker(max_attempts=1)
async def make_thumbnail(width: int) -> str:
    if width < 1:
        raise ValueError("nothing would be seen")
    await asyncio.sleep(0.01)  # a slow service
    return f"{width} x {width}"


async def post_thumbnail(request: Request) -> JSONResponse:
    body = await request.json()
    job = await make_thumbnail.enqueue(body["width"])
    return JSONResponse({"job": job.id}, status_code=202)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    async with jobs, Gauges(jobs, observability):
        yield


app = Starlette(
    routes=[
        Route("/thumbnails", post_thumbnail, methods=["POST"]),
        Route("/metrics", observability.asgi()),
    ],
    lifespan=lifespan,
)
