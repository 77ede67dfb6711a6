"""Background jobs in a Starlette app: enqueue in a request, answer at once, look later.

Run it in this folder, and talk to it:

    uvicorn web_app:app

    curl -X POST localhost:8000/reports -d '{"title": "Sales"}'           → {"job": 1}
    curl -X POST localhost:8000/words -d '{"text": "to be or not to be"}' → {"job": 2}
    curl localhost:8000/jobs/2                                            → {"state": "completed", "result": …}
"""

from __future__ import annotations

import asyncio
from collections import Counter

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from jobs_async import JobContext, JobNotFound, Supervisor

jobs = Supervisor("sqlite:///jobs.db", queues={"default": 10, "cpu": 2})


@jobs.worker(context=True, max_attempts=5)
async def write_report(ctx: JobContext, title: str, pages: int = 3) -> str:
    """Async: runs in the event loop, beside the requests."""
    for page in range(pages):
        await asyncio.sleep(0.01)  # a slow service
        await ctx.progress((page + 1) / pages, f"page {page + 1}")
    return f"{title}, {pages} pages"


@jobs.worker(queue="cpu", timeout_seconds=60)
def count_words(text: str) -> dict[str, int]:
    """Not async: runs in a thread, so requests are served meanwhile."""
    return dict(Counter(text.split()))


async def post_report(request: Request) -> JSONResponse:
    body = await request.json()
    job = await write_report.enqueue(body["title"])
    return JSONResponse({"job": job.id}, status_code=202)


async def post_words(request: Request) -> JSONResponse:
    body = await request.json()
    job = await count_words.enqueue(body["text"])
    return JSONResponse({"job": job.id}, status_code=202)


async def show_job(request: Request) -> JSONResponse:
    try:
        job = await jobs.get(request.path_params["job_id"])
    except JobNotFound:
        return JSONResponse({"error": "no such job"}, status_code=404)
    return JSONResponse(
        {
            "state": job.state.name,
            "attempt": job.attempt,
            "progress": job.progress.fraction if job.progress else None,
            "result": job.result,
            "error": job.last_error.error if job.last_error else None,
        }
    )


app = Starlette(
    routes=[
        Route("/reports", post_report, methods=["POST"]),
        Route("/words", post_words, methods=["POST"]),
        Route("/jobs/{job_id:int}", show_job),
    ],
    lifespan=jobs.lifespan,
)
