"""A live activity log of three kinds of jobs: one that works, one that takes its time, one that always fails.

    python examples/activity_log.py

Jobs are enqueued over some seconds and run two at a time. A telemetry handler keeps the last 16 events; the screen
shows the latest 10 and how many jobs are in each state. Without a terminal, events are printed as they come. The
program ends when every job has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from jobs_async import (
    ActivityLog,
    ConstantBackoff,
    Event,
    Job,
    JobCompleted,
    JobDiscarded,
    JobEnqueued,
    JobFailed,
    JobStarted,
    JobState,
    MemoryStore,
    Queue,
    Supervisor,
    Telemetry,
)

SHOWN_STATES = (JobState.available, JobState.executing, JobState.completed, JobState.discarded)


def line(event: Event) -> str | None:
    """How the log tells of an event; None for those it leaves out."""
    match event:
        case JobEnqueued(job):
            return f"Enqueued: {job.worker}({job.args_json})"
        case JobStarted(job):
            return f"Started: {job.worker} (attempt {job.attempt})"
        case JobCompleted(job, duration_ms):
            return f"Completed: {job.worker} in {duration_ms}ms"
        case JobFailed(job, _, error):
            return f"Failed: {job.worker} - {error} (attempt {job.attempt})"
        case JobDiscarded(job, _, error):
            return f"Discarded: {job.worker} - {error}"
        case _:
            return None


async def summary(jobs: Supervisor) -> str:
    """How many jobs are in each state, over all queues."""
    counts: Counter[JobState] = Counter()
    for (_queue, state), count in (await jobs.counts()).items():
        counts[state] += count
    return "  ".join(f"{state.name} {counts[state]}" for state in SHOWN_STATES)


async def screen(jobs: Supervisor, log: ActivityLog) -> Group:
    """The counts, and below them the log."""
    return Group(Text(await summary(jobs)), Panel(Text("\n".join(log.latest())), title="activity", height=12))


async def keep_drawing(live: Live, jobs: Supervisor, log: ActivityLog) -> None:
    while True:
        live.update(await screen(jobs, log), refresh=True)
        await asyncio.sleep(0.1)


async def main(speed: float = 1.0, console: Console | None = None) -> ActivityLog:
    """Run the demo; `speed=10` makes every wait ten times as short."""
    console = console or Console()
    log, telemetry = ActivityLog(size=16, line=line), Telemetry()
    telemetry.attach(log)
    jobs = Supervisor(MemoryStore(), queues=[Queue("default", concurrency=2)], telemetry=telemetry, poll_interval=0.1)

    @jobs.worker
    async def echo(text: str) -> str:
        return text

    @jobs.worker
    async def slow() -> None:
        await asyncio.sleep(2 / speed)

    @jobs.worker(max_attempts=3, retry_strategy=ConstantBackoff(1 / speed))
    async def failing() -> None:
        raise RuntimeError("as announced")

    async with contextlib.AsyncExitStack() as stack:
        live: Live | None = None
        async with jobs:
            if console.is_terminal:
                live = stack.enter_context(Live(console=console, auto_refresh=False))
                drawing = asyncio.create_task(keep_drawing(live, jobs, log))
                stack.callback(drawing.cancel)
            else:
                telemetry.attach(lambda event: console.print(line(event) or "", markup=False, highlight=False))

            enqueued: list[Job[Any]] = []
            for number in range(1, 4):
                enqueued.append(await echo.enqueue(f"hello {number}"))
                enqueued.append(await slow.enqueue())
                enqueued.append(await failing.enqueue())
                await asyncio.sleep(1 / speed)
            await asyncio.gather(*(jobs.wait(job) for job in enqueued))
        if live is not None:
            live.update(await screen(jobs, log), refresh=True)  # as it is when all has been told
        console.print(await summary(jobs), highlight=False)
    return log


if __name__ == "__main__":
    logging.getLogger("jobs_async").setLevel(logging.CRITICAL)  # no tracebacks of the failures that are part of this
    asyncio.run(main())
