"""Log lines that say which job wrote them, and a failed job that still has them.

    python examples/logging_app.py            # lines for people
    python examples/logging_app.py --json     # lines for programs

Three feeds are imported, two at a time; one of them is broken. Lines go to stderr as they are written. When all jobs
have ended, the program asks the store what the broken one had to say, attempt by attempt, and prints that.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from jobs_async import ConstantBackoff, Job, JobState, MemoryStore, Store, Supervisor, Telemetry
from jobs_async.observe.captured import CapturedLogs
from jobs_async.observe.logs import HumanFormatter, JobFilter, JsonFormatter

FEEDS = {"news": 120, "weather": 48, "gossip": -1}

log = logging.getLogger("feeds")


def set_up_logging(as_json: bool) -> logging.Handler:
    """Every line knows its job, also those of threads and libraries: the filter is on the handler."""
    handler = logging.StreamHandler()
    handler.addFilter(JobFilter())
    handler.setFormatter(JsonFormatter() if as_json else HumanFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return handler


def parse(name: str) -> int:
    """Deep in the code, where nobody has heard of jobs."""
    entries = FEEDS[name]
    if entries < 0:
        raise ValueError("not a feed")
    log.info("parsed", extra={"feed": name, "entries": entries})
    return entries


def make(store: Store, captured: CapturedLogs) -> Supervisor:
    telemetry = Telemetry()
    telemetry.attach(captured)
    jobs = Supervisor(store, queues={"default": 2}, telemetry=telemetry, instruments=[captured], poll_interval=0.1)

    @jobs.worker(max_attempts=2, retry_strategy=ConstantBackoff(0.2))
    async def import_feed(name: str) -> int:
        log.info("fetching %s", name)
        await asyncio.sleep(0.05)  # a slow service
        return await asyncio.to_thread(parse, name)

    return jobs


async def report(job: Job[int], captured: CapturedLogs) -> None:
    """What a job has logged, as a page about it would show it."""
    for attempt in await captured.of(job):
        print(f"job {job.id}, attempt {attempt.attempt}:")
        for line in attempt.lines:
            print(f"  {line.level:<7} {line.logger}: {line.text.splitlines()[0]}")


async def main() -> None:
    store = MemoryStore()
    with CapturedLogs(store) as captured:
        async with make(store, captured) as jobs:
            enqueued = [await jobs.enqueue("import_feed", {"name": name}) for name in FEEDS]
            ended = [await jobs.wait(job) for job in enqueued]
            for job in ended:
                if job.state is JobState.discarded:
                    await report(job, captured)


if __name__ == "__main__":
    set_up_logging(as_json="--json" in sys.argv[1:])
    asyncio.run(main())
