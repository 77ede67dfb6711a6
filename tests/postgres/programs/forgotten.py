"""Opens something, closes nothing, and comes to its end in one of several ways.

python forgotten.py DSN WHAT HOW
"""

from __future__ import annotations

import asyncio
import sys

from jobs_async.core.options import NewJob
from jobs_async.core.store import JobQuery
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.postgres import PostgresStore

kept: list[object] = []
"""Module-level, so that nothing is collected before the interpreter ends."""


async def store(dsn: str) -> None:
    one = PostgresStore(dsn)
    kept.append(one)
    await one.open()
    await one.insert([NewJob("work", "{}")])
    await one.insert([NewJob("work", "{}", unique_key="k")])
    await one.fetch("default", 1, node=None)
    one.wakes(lambda _: None)


async def busy_store(dsn: str) -> None:
    """With writes and reads under way that nobody waits for any more."""
    one = PostgresStore(dsn)
    kept.append(one)
    await one.open()
    kept.extend(asyncio.create_task(one.insert([NewJob("work", "{}") for _ in range(50)])) for _ in range(50))
    kept.extend(asyncio.create_task(one.insert([NewJob("work", "{}", unique_key=f"{n}")])) for n in range(20))
    kept.extend(asyncio.create_task(one.fetch("default", 10, node=None)) for _ in range(10))
    kept.extend(asyncio.create_task(one.select(JobQuery())) for _ in range(10))
    await asyncio.sleep(0)


async def supervisor(dsn: str) -> None:
    jobs = Supervisor(dsn)
    kept.append(jobs)
    started = asyncio.Event()

    @jobs.worker
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    await jobs.start()
    await endless.enqueue()
    await started.wait()


async def producer(dsn: str) -> None:
    """A Supervisor that was never started, and opened its store when it was first used."""
    jobs = Supervisor(dsn)
    kept.append(jobs)
    await jobs.enqueue("work")


async def main(dsn: str, what: str, how: str) -> None:
    await {"store": store, "busy_store": busy_store, "supervisor": supervisor, "producer": producer}[what](dsn)
    print("leaving", flush=True)
    if how == "raises":
        raise RuntimeError("an application's own bug")
    if how == "exits":
        sys.exit(3)
    if how == "collects":
        kept.clear()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
