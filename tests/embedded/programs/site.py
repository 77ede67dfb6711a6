"""A web app with jobs beside it, as `uvicorn tests.embedded.programs.site:app` serves it.

JOBS_FILE is where its jobs are, and beside it the files that some of them wait for; JOBS_GRACE its shutdown_timeout.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from jobs_async import Supervisor

FILE = Path(os.environ["JOBS_FILE"])

jobs = Supervisor(
    f"sqlite:///{FILE}",
    shutdown_timeout=float(os.environ.get("JOBS_GRACE", "10")),
    poll_interval=0.05,
    heartbeat=0.25,
    lease=2,
    rescue_interval=0.25,
)


def say(*words: object) -> None:
    print(*words, flush=True)


def is_there(name: str) -> bool:
    return FILE.with_name(name).exists()


@jobs.worker
async def short() -> str:
    """Ends when it is let go."""
    say("short began")
    while not is_there("go"):
        await asyncio.sleep(0.005)
    return "done"


@jobs.worker
def thread() -> str:
    """The same in a thread, which cannot be cancelled."""
    say("thread began")
    while not is_there("go"):
        time.sleep(0.005)
    return "done"


@jobs.worker
async def long() -> str:
    """Ends only in the next life."""
    say("long began")
    while not is_there("next life"):
        await asyncio.sleep(0.005)
    return "done"


@jobs.worker
def deaf() -> str:
    """A thread that outlives every grace."""
    say("deaf began")
    while not is_there("enough"):
        time.sleep(0.005)
    return "too late"


async def slow(_request: Request) -> Response:
    """A request that is not answered before the server is stopped."""
    say("slow began")
    await asyncio.sleep(3600)
    return PlainTextResponse("at last")


app = Starlette(routes=[Route("/slow", slow)], lifespan=jobs.lifespan)
