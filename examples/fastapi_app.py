"""Background jobs in a FastAPI app: enqueue in a request, answer at once, look later.

Run it in this folder, and talk to it:

    uvicorn fastapi_app:app

    curl -X POST 'localhost:8000/reports?title=Sales'               → {"job": 1}
    curl -X POST 'localhost:8000/words?text=to+be+or+not+to+be'     → {"job": 2}
    curl localhost:8000/jobs/2                                      → {"state": "completed", "result": …}
"""

import asyncio
from collections import Counter
from typing import Any

from fastapi import FastAPI, HTTPException

from jobs_async import JobContext, JobNotFound, Supervisor

jobs = Supervisor("sqlite:///jobs.db", queues={"default": 10, "cpu": 2})
app = FastAPI(lifespan=jobs.lifespan)


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


@app.post("/reports", status_code=202)
async def post_report(title: str) -> dict[str, int]:
    job = await write_report.enqueue(title)
    return {"job": job.id}


@app.post("/words", status_code=202)
async def post_words(text: str) -> dict[str, int]:
    job = await count_words.enqueue(text)
    return {"job": job.id}


@app.get("/jobs/{job_id}")
async def show_job(job_id: int) -> dict[str, Any]:
    try:
        job = await jobs.get(job_id)
    except JobNotFound:
        raise HTTPException(404, "no such job") from None
    return {
        "state": job.state.name,
        "attempt": job.attempt,
        "progress": job.progress.fraction if job.progress else None,
        "result": job.result,
        "error": job.last_error.error if job.last_error else None,
    }
