"""Pays, each job once: `python money.py URL PLACE`, where PLACE leads the application to the same database.

Says what each job does as it does it, for whoever wants to kill this in the middle, and ends when all are completed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import aiosqlite
import asyncpg

from jobs_async import ConstantBackoff, JobContext, JobState, Supervisor, worker

url, place = sys.argv[1:]
chance = Random()
stack = AsyncExitStack()
pool: Any = None


@asynccontextmanager
async def transaction() -> AsyncGenerator[Any]:
    if pool is not None:
        async with pool.acquire() as connection, connection.transaction():
            yield connection
        return
    async with aiosqlite.connect(place, isolation_level=None, timeout=30) as connection:
        await connection.execute("BEGIN IMMEDIATE")
        yield connection
        await connection.commit()


async def say(what: str, job_id: int) -> None:
    print(what, job_id, flush=True)
    for _ in range(chance.randrange(3)):
        await asyncio.sleep(0)


@worker(context=True, max_attempts=1000, retry_strategy=ConstantBackoff(0.01))
async def pay(ctx: JobContext, amount: int) -> None:
    async with transaction() as connection:
        await say("begun", ctx.job.id)
        await connection.execute(f"INSERT INTO ledger (job_id, amount) VALUES ({ctx.job.id}, {int(amount)})")
        await say("paid", ctx.job.id)
        await ctx.complete(connection=connection, result=amount)
        await say("completed", ctx.job.id)
    await say("committed", ctx.job.id)
    await say("ended", ctx.job.id)


async def main() -> None:
    global pool
    async with stack:
        if url.startswith("postgresql"):
            pool = await stack.enter_async_context(asyncpg.create_pool(place, min_size=1, max_size=8))
        jobs = Supervisor(
            url,
            workers=[pay],
            queues={"default": 8},
            poll_interval=0.05,
            heartbeat=0.25,
            lease=1.5,
            rescue_interval=0.1,
            max_rescues=1000,
        )
        async with jobs:
            while any(state is not JobState.completed for _, state in await jobs.counts()):
                await asyncio.sleep(0.05)


asyncio.run(main())
