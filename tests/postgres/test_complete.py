"""`JobContext.complete` beside other transactions, which on PostgreSQL go on meanwhile."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import asyncpg
import pytest

from jobs_async import JobContext, JobState, OptionError, StoreBusy, Supervisor, UniqueStrategy
from jobs_async.stores.postgres import PostgresStore
from tests.postgres.fleet import holds, operator
from tests.postgres.support import PATIENCE, ask, connected, until


def supervisor(dsn: str) -> Supervisor:
    return Supervisor(PostgresStore(dsn), poll_interval=0.05)


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_transaction_left_open_holds_up_its_own_job_alone(
    pg_dsn: str, is_committed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, connected(pg_dsn) as connection:
        transaction = connection.transaction()

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> str:
            await transaction.start()
            await ctx.complete(connection=connection, result="in the transaction")
            return "returned"

        @jobs.worker
        async def other(n: int) -> int:
            return n

        with caplog.at_level(logging.WARNING, "jobs_async"):
            job = await pay.enqueue()
            await until(lambda: holds(lambda: "that somebody's transaction may hold failed" in caplog.text))
        assert [await jobs.result(await other.enqueue(n)) for n in range(3)] == [0, 1, 2]
        assert (await jobs.get(job.id)).state is JobState.executing
        await (transaction.commit() if is_committed else transaction.rollback())
        assert await jobs.result(job) == ("in the transaction" if is_committed else "returned")


async def test_a_row_that_the_application_holds_holds_up_no_other_settlement(pg_dsn: str) -> None:
    """Enqueueing a duplicate locks the job that has the key, until the application's transaction ends."""
    go = asyncio.Event()
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, connected(pg_dsn) as connection:

        @jobs.worker
        async def slow(n: int) -> int:
            await go.wait()
            return n

        @jobs.worker
        async def fast(n: int) -> int:
            return n

        held = [await slow.options(unique_key=f"k{n}").enqueue(n) for n in range(3)]
        for job in held:
            await until(partial(_executes, jobs, job.id))
        async with connection.transaction():
            for n, job in enumerate(held):
                twin = await slow.options(unique_key=f"k{n}", connection=connection).enqueue(n)
                assert (twin.id, twin.duplicate) == (job.id, True)
            go.set()
            assert [await jobs.result(await fast.enqueue(n)) for n in range(5)] == [0, 1, 2, 3, 4]
            assert all([await _executes(jobs, job.id) for job in held])
        assert [await jobs.result(job) for job in held] == [0, 1, 2]


async def _executes(jobs: Supervisor, job_id: int) -> bool:
    return (await jobs.get(job_id)).state is JobState.executing


async def test_who_would_replace_the_job_waits_for_what_becomes_of_it(pg_dsn: str) -> None:
    """The key is held before the row, as an insert holds them: the other way round the two would wait for each other,
    for the handler itself takes the key anew.
    """
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, operator(pg_dsn) as stranger:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext, n: int) -> int:
            if n:
                return n
            async with connected(pg_dsn) as connection, connection.transaction():
                await connection.execute("SET LOCAL deadlock_timeout = '1ms'")  # it would be this one that is refused
                await ctx.complete(connection=connection, result=0)
                replacing = stranger.enqueue(
                    "pay", {"n": 2}, unique_key="k", unique_strategy=UniqueStrategy.CANCEL_EXISTING
                )
                waits.append(asyncio.create_task(replacing))
                locked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                await until(lambda: ask(pg_dsn, locked))
                next_one = await pay.options(unique_key="k", connection=connection).enqueue(1)
                assert not next_one.duplicate
            return -1

        waits: list[asyncio.Task[object]] = []
        job = await pay.options(unique_key="k").enqueue(0)
        assert await jobs.result(job) == 0
        assert (await jobs.get(job.id)).errors == ()
        await waits[0]
        await jobs.drain()


async def test_who_asks_to_cancel_while_the_transaction_is_open_is_told_that_it_is_locked(pg_dsn: str) -> None:
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, operator(pg_dsn) as stranger:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> Any:
            async with connected(pg_dsn) as connection, connection.transaction():
                await ctx.complete(connection=connection, result="paid")
                with pytest.raises(StoreBusy):
                    await stranger.cancel(ctx.job.id)

        assert await jobs.result(await pay.enqueue()) == "paid"


async def test_a_transaction_that_began_before_the_claim_is_refused_with_a_reason(pg_dsn: str) -> None:
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, connected(pg_dsn) as connection:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> str:
            with pytest.raises((OptionError, asyncpg.SerializationError)) as refused:
                await ctx.complete(connection=connection)
            await transaction.rollback()
            return type(refused.value).__name__

        job = await pay.options(delay=3600).enqueue()
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        await connection.fetch("SELECT count(*) FROM jobs_async_jobs")
        await jobs.retry(job.id)
        assert await jobs.result(job) == "OptionError"


async def test_a_job_that_was_replaced_in_an_open_transaction_waits_for_what_becomes_of_that(pg_dsn: str) -> None:
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, connected(pg_dsn) as rival:
        began, replaced = asyncio.Event(), asyncio.Event()

        @jobs.worker(context=True)
        async def pay(ctx: JobContext, n: int) -> str:
            if n:
                return "the newer one"
            began.set()
            await replaced.wait()
            async with connected(pg_dsn) as connection, connection.transaction():
                await ctx.complete(connection=connection)
            return "never"

        old = await pay.options(unique_key="k").enqueue(0)
        await began.wait()
        transaction = rival.transaction()
        await transaction.start()
        cancel = UniqueStrategy.CANCEL_EXISTING
        new = await pay.options(unique_key="k", unique_strategy=cancel, connection=rival).enqueue(1)
        replaced.set()
        locked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await until(lambda: ask(pg_dsn, locked))
        await transaction.commit()
        assert await jobs.result(new) == "the newer one"
        assert (await jobs.wait(old)).state is JobState.cancelled


async def test_a_conflict_of_serializable_transactions_reaches_the_handler_which_can_repeat_it(pg_dsn: str) -> None:
    conflicts: list[str] = []
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs, connected(pg_dsn) as connection:

        @jobs.worker(context=True)
        async def pay(ctx: JobContext) -> Any:
            while True:
                try:
                    async with connection.transaction(isolation="repeatable_read"):
                        await connection.fetch("SELECT count(*) FROM jobs_async_jobs")
                        if not conflicts:
                            touch = "UPDATE jobs_async_jobs SET correlation_id = 'x' WHERE id = $1 RETURNING id"
                            await ask(pg_dsn, touch, ctx.job.id)
                        await ctx.complete(connection=connection, result=len(conflicts))
                        return
                except asyncpg.SerializationError as error:
                    conflicts.append(type(error).__name__)

        assert await jobs.result(await pay.enqueue()) == 1
    assert conflicts == ["SerializationError"]


async def test_a_connection_that_breaks_in_the_transaction_leaves_the_job_to_its_next_attempt(pg_dsn: str) -> None:
    async with asyncio.timeout(PATIENCE), supervisor(pg_dsn) as jobs:

        @jobs.worker(context=True, retry_strategy=lambda *_: 0.01)
        async def pay(ctx: JobContext) -> Any:
            async with connected(pg_dsn) as connection, connection.transaction():
                await ctx.complete(connection=connection, result=ctx.attempt)
                if ctx.attempt == 1:
                    pid = await connection.fetchval("SELECT pg_backend_pid()")
                    await ask(pg_dsn, "SELECT pg_terminate_backend($1)", pid)

        job = await pay.enqueue()
        assert await jobs.result(job) == 2
        assert len((await jobs.get(job.id)).errors) == 1
