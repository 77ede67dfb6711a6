"""Nobody's cancellation reaches a transaction: whatever it hits, nothing is half written or left open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from random import Random
from typing import Any

import pytest

from jobs_async.core.errors import StoreError
from jobs_async.core.job import JobState
from jobs_async.core.options import UniqueStrategy
from jobs_async.core.store import JobQuery, Node
from jobs_async.stores.postgres import PostgresStore
from tests.postgres.remains import BACKENDS, leaving_nothing, no_backends
from tests.postgres.support import ask, connected, done, new, until
from tests.sqlite.test_cancellation import at_every_point, cancelled_after

WAITING = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
BUSY = f"{BACKENDS} AND state <> 'idle'"


STEPS = [pytest.param(0.5, id="quick"), pytest.param(0.08, id="thorough", marks=pytest.mark.soak)]


def turns(step: float) -> Iterator[int]:
    """Of the loop, ever further apart: one that waits for the network takes thousands in no time."""
    turn = 1
    while True:
        yield turn
        turn += 1 + int(step * turn)


@pytest.fixture
async def store(pg_dsn: str) -> AsyncIterator[PostgresStore]:
    async with leaving_nothing():
        async with PostgresStore(pg_dsn, pool_size=2) as store:
            yield store
        await no_backends(pg_dsn)


async def assert_free(store: PostgresStore, dsn: str) -> None:
    """When what was begun has ended, no transaction is open, and there are no more connections than there may be."""

    async def at_rest() -> bool:
        return not await ask(dsn, BUSY)

    await until(at_rest)
    assert len(await ask(dsn, BACKENDS)) <= 4 + 2


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
async def test_row_69_an_insert_cancelled_at_any_point_stores_all_or_nothing_and_leaves_no_transaction(
    store: PostgresStore, pg_dsn: str, keyed: bool
) -> None:
    def insert(turn: int) -> Awaitable[Any]:
        keys: dict[str, Any] = {"unique_key": "k", "unique_strategy": UniqueStrategy.CANCEL_EXISTING} if keyed else {}
        return store.insert([new(f"turn-{turn}"), new(f"turn-{turn}", **keys), new(f"turn-{turn}")])

    async for task in at_every_point(insert):
        await assert_free(store, pg_dsn)
        assert task.cancelled() or len(task.result()) == 3
    stored = await ask(pg_dsn, "SELECT worker, count(*) FROM jobs_async_jobs GROUP BY worker")
    assert {count for _, count in stored} == {3}
    live = "SELECT count(*) FROM jobs_async_jobs WHERE unique_key = 'k' AND state = 0"
    assert await ask(pg_dsn, live) == [(int(keyed),)]


async def test_row_70_a_claim_whose_caller_was_cancelled_is_found_executing_and_can_be_rescued(
    store: PostgresStore, pg_dsn: str
) -> None:
    await store.beat(Node(id="node"), 3600.0, join=True)
    got: list[int] = []

    async def fetch(turn: int) -> Any:
        return await store.fetch("default", 2, node="node")

    await store.insert([new() for _ in range(1000)])
    async for task in at_every_point(fetch):
        got += [] if task.cancelled() else [job.id for job in task.result().jobs]
        await assert_free(store, pg_dsn)
    executing = {job.id: job for job in await store.select(JobQuery(states=[JobState.executing], limit=1000))}
    assert set(got) <= executing.keys()
    assert len(executing) > len(got), "no cancelled claim had been committed"
    assert {(job.node, job.attempt, job.claim) for job in executing.values()} == {("node", 1, 1)}
    await store.beat(Node(id="node"), 0.0)
    orphans = await store.select(JobQuery(orphaned=True, limit=1000))
    assert {job.id for job in orphans} == executing.keys()
    assert await store.rescue_stuck(0) == len(executing)
    assert await store.tally() == {("default", JobState.available): 1000}


async def test_row_54_a_settlement_cancelled_at_any_point_is_written_or_can_be_repeated(
    store: PostgresStore, pg_dsn: str
) -> None:
    await store.insert([new() for _ in range(1000)])
    jobs = (await store.fetch("default", 1000, node=None)).jobs

    def apply(turn: int) -> Awaitable[Any]:
        return store.apply([done(jobs.pop())])

    left = {job.id: job for job in jobs}
    async for task in at_every_point(apply):
        job = left.popitem()[1]
        await assert_free(store, pg_dsn)
        row = await store.get(job.id)
        assert row.state in (JobState.executing, JobState.completed)
        assert task.cancelled() or row == task.result()[0]
        (again,) = await store.apply([done(job)])
        assert again is None or row.state is JobState.executing  # what was cancelled may only now have been written
        assert (await store.get(job.id)).result == "done"


@pytest.mark.parametrize("question", ["select", "tally", "queues", "nodes", "set_queue", "records"])
async def test_row_52_a_call_cancelled_at_any_point_spoils_no_other_answer_and_keeps_no_connection(
    store: PostgresStore, pg_dsn: str, question: str
) -> None:
    await store.insert([new() for _ in range(50)])
    await store.set_queue("q", limit=1)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "select": lambda: store.select(JobQuery()),
        "tally": store.tally,
        "queues": store.queues,
        "nodes": store.nodes,
        "set_queue": lambda: store.set_queue("q", limit=1),
        "records": lambda: store.get_records("kind"),
    }
    expected = await calls[question]()
    async for task in at_every_point(lambda _: calls[question]()):
        assert task.cancelled() or task.result() == expected
        async with asyncio.timeout(30):
            assert await asyncio.gather(*(calls[question]() for _ in range(3))) == [expected] * 3
    await assert_free(store, pg_dsn)


async def test_row_51_among_many_callers_only_the_cancelled_ones_notice(store: PostgresStore, pg_dsn: str) -> None:
    """A hundred tasks at once share the connections, and none finds another's operation in progress."""
    rng = Random(7)
    for _ in range(6):
        await store.insert([new() for _ in range(20)])
        mine = (await store.fetch("default", 20, node=None)).jobs
        calls: list[Coroutine[Any, Any, Any]] = [store.insert([new("kept", queue="other")]) for _ in range(40)]
        calls += [store.insert([new("kept", queue="other", unique_key=f"k{number}")]) for number in range(10)]
        calls += [store.apply([done(job)]) for job in mine]
        calls += [store.select(JobQuery(queue="default", limit=1)) for _ in range(30)]
        tasks = [asyncio.create_task(call) for call in calls]
        rng.shuffle(tasks)
        doomed = tasks[: len(tasks) // 2]
        for task in doomed:
            if rng.random() < 0.3:
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks[len(doomed) :])
        await asyncio.wait(doomed)
        for [job] in results:
            assert (await store.get(job.id)).queue == job.queue
        await assert_free(store, pg_dsn)


async def test_row_53_a_statement_that_somebody_cancels_at_the_server_is_a_store_error_and_the_next_one_works(
    store: PostgresStore, pg_dsn: str
) -> None:
    """Whoever cancels it: an administrator, a time limit of the role, or a cancellation that came late."""
    [first] = await store.insert([new()])
    await store.tally()
    async with connected(pg_dsn) as holder, holder.transaction():
        await holder.execute("LOCK TABLE jobs_async_jobs IN ACCESS EXCLUSIVE MODE")
        calls = [asyncio.create_task(call) for call in (store.insert([new()]), store.tally())]
        async with connected(pg_dsn) as onlooker:
            while await onlooker.fetchval(f"SELECT count(*) {WAITING}") < 2:
                await asyncio.sleep(0.01)
            assert len(await onlooker.fetch(f"SELECT pg_cancel_backend(pid) {WAITING}")) == 2
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, StoreError) for answer in answers), answers
    assert await store.tally() == {("default", JobState.available): 1}
    [second] = await store.insert([new()])
    assert [job.id for job in (await store.fetch("default", 2, node=None)).jobs] == [first.id, second.id]


@pytest.mark.parametrize("step", STEPS)
async def test_an_opening_cancelled_at_any_point_leaves_nothing_behind_and_can_be_repeated(
    pg_dsn: str, step: float
) -> None:
    async with leaving_nothing():
        late = 0
        for turn in turns(step):
            async with connected(pg_dsn) as onlooker:
                await onlooker.execute("DROP SCHEMA IF EXISTS elsewhere CASCADE")
            store = PostgresStore(pg_dsn, schema="elsewhere")
            task = await cancelled_after(turn, store.open())
            late = 0 if task.cancelled() else late + 1
            async with asyncio.timeout(30):
                await store.open()
                await store.insert([new()])
                await store.close()
            await no_backends(pg_dsn)
            if late == 3:
                break


@pytest.mark.parametrize("step", STEPS)
async def test_a_close_cancelled_at_any_point_loses_nothing_acknowledged_and_leaves_nothing_behind(
    pg_dsn: str, step: float
) -> None:
    async with leaving_nothing():
        late, acknowledged = 0, 0
        for turn in turns(step):
            store = PostgresStore(pg_dsn)
            await store.open()
            writing = [asyncio.create_task(store.insert([new()])) for _ in range(5)]
            await asyncio.sleep(0)
            task = await cancelled_after(turn, store.close())
            assert task.cancelled() or task.exception() is None
            late = 0 if task.cancelled() else late + 1
            await asyncio.wait(writing)
            acknowledged += sum(one.exception() is None for one in writing)
            async with asyncio.timeout(30):
                await store.close()
            await no_backends(pg_dsn)
            [(stored,)] = await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs")
            assert stored >= acknowledged
            if late == 3:
                break
