"""Nobody's cancellation reaches a transaction: whatever it hits, the file is free and the store works on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiosqlite
import pytest

from jobs_async.core.job import JobState
from jobs_async.core.options import UniqueStrategy
from jobs_async.core.store import JobQuery, Node
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import ask, can_be_written_at_once, done, new, open_files, threads, until


def turns() -> Iterator[int]:
    """Every one of the first turns of the loop, then ever wider steps."""
    turn = 1
    while True:
        yield turn
        turn += 1 + turn // 12


async def cancelled_after(turn: int, call: Awaitable[Any]) -> asyncio.Task[Any]:
    """A call that was cancelled after so many turns of the loop, or was done before."""

    async def waiting() -> Any:
        return await call

    task = asyncio.create_task(waiting())
    for _ in range(turn):
        await asyncio.sleep(0)
        if task.done():
            break
    task.cancel()
    await asyncio.wait({task})
    return task


async def at_every_point(call: Callable[[int], Awaitable[Any]]) -> AsyncIterator[asyncio.Task[Any]]:
    """Cancel a call ever later, until three in a row came too late."""
    late, cancelled = 0, 0
    for turn in turns():
        task = await cancelled_after(turn, call(turn))
        cancelled += task.cancelled()
        late = 0 if task.cancelled() else late + 1
        yield task
        if late == 3:
            break
    assert cancelled


async def assert_free(store: SqliteStore, path: Path) -> None:
    """When what was begun has ended, a stranger may write at once."""
    await store.set_queue("touched", paused=True)
    assert can_be_written_at_once(path)


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
async def test_row_69_an_insert_cancelled_at_any_point_stores_all_or_nothing_and_leaves_no_transaction(
    store: SqliteStore, path: Path, keyed: bool
) -> None:
    def insert(turn: int) -> Awaitable[Any]:
        keys: dict[str, Any] = {"unique_key": "k", "unique_strategy": UniqueStrategy.CANCEL_EXISTING} if keyed else {}
        return store.insert([new(f"turn-{turn}"), new(f"turn-{turn}", **keys), new(f"turn-{turn}")])

    async for task in at_every_point(insert):
        await assert_free(store, path)
        assert task.cancelled() or len(task.result()) == 3
    stored = ask(path, "SELECT worker, count(*) FROM jobs_async_jobs GROUP BY worker")
    assert {count for _, count in stored} == {3}
    assert ask(path, "SELECT count(*) FROM jobs_async_jobs WHERE unique_key = 'k' AND state = 0") == [(int(keyed),)]


async def test_row_70_a_claim_whose_caller_was_cancelled_is_found_executing_and_can_be_rescued(
    store: SqliteStore, path: Path
) -> None:
    await store.beat(Node(id="node"), 3600.0, join=True)
    got: list[int] = []

    async def fetch(turn: int) -> Any:
        return await store.fetch("default", 2, node="node")

    await store.insert([new() for _ in range(1000)])
    async for task in at_every_point(fetch):
        got += [] if task.cancelled() else [job.id for job in task.result().jobs]
        await assert_free(store, path)
    executing = {job.id: job for job in await store.select(JobQuery(states=[JobState.executing], limit=1000))}
    assert set(got) <= executing.keys()
    assert len(executing) > len(got), "no cancelled claim had been committed"
    assert {(job.node, job.attempt, job.claim) for job in executing.values()} == {("node", 1, 1)}
    await store.beat(Node(id="node"), 0.0)
    orphans = await store.select(JobQuery(orphaned=True, limit=1000))
    assert {job.id for job in orphans} == executing.keys()
    assert await store.rescue_stuck(0) == len(executing)
    assert await store.tally() == {("default", JobState.available): 1000}


async def test_row_70_a_settlement_cancelled_at_any_point_is_written_or_can_be_repeated(
    store: SqliteStore, path: Path
) -> None:
    await store.insert([new() for _ in range(1000)])
    jobs = (await store.fetch("default", 1000, node=None)).jobs

    def apply(turn: int) -> Awaitable[Any]:
        return store.apply([done(jobs.pop())])

    left = {job.id: job for job in jobs}
    async for task in at_every_point(apply):
        job = left.popitem()[1]
        await assert_free(store, path)
        row = await store.get(job.id)
        assert row.state in (JobState.executing, JobState.completed)
        assert task.cancelled() or row == task.result()[0]
        (again,) = await store.apply([done(job)])
        assert (again is None) == (row.state is JobState.completed)
        assert (await store.get(job.id)).result == "done"


@pytest.mark.parametrize("question", ["select", "tally", "queues", "nodes"])
async def test_a_question_cancelled_at_any_point_spoils_no_other_answer(store: SqliteStore, question: str) -> None:
    await store.insert([new() for _ in range(50)])
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "select": lambda: store.select(JobQuery()),
        "tally": store.tally,
        "queues": store.queues,
        "nodes": store.nodes,
    }
    expected = await calls[question]()
    async for task in at_every_point(lambda _: calls[question]()):
        assert task.cancelled() or task.result() == expected
        assert await calls[question]() == expected


async def test_among_many_callers_only_the_cancelled_ones_notice(store: SqliteStore, path: Path) -> None:
    rng = Random(7)
    for _ in range(20):
        await store.insert([new() for _ in range(20)])
        mine = (await store.fetch("default", 20, node=None)).jobs
        calls: list[Coroutine[Any, Any, Any]] = [store.insert([new("kept", queue="other")]) for _ in range(30)]
        calls += [store.insert([new("kept", queue="other", unique_key=f"k{number}")]) for number in range(10)]
        calls += [store.apply([done(job)]) for job in mine]
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
            assert (await store.get(job.id)).state is job.state
        await assert_free(store, path)


@pytest.mark.parametrize("within", [False, True], ids=["autocommit", "in a transaction"])
async def test_row_69_an_enqueue_cancelled_on_the_applications_connection_leaves_that_as_it_was(
    store: SqliteStore, path: Path, within: bool
) -> None:
    jobs = Supervisor(store, queues={})
    async with aiosqlite.connect(path, isolation_level=None) as connection:

        async def enqueue(turn: int) -> Any:
            options: Any = {"unique_key": f"k{turn}"} if turn % 2 else {}
            return await jobs.enqueue("work", **options, connection=connection)

        stored = 0
        if within:
            await connection.execute("BEGIN IMMEDIATE")
        async for task in at_every_point(enqueue):
            stored += not task.cancelled()
            ((ours,),) = list(await connection.execute_fetchall("SELECT count(*) FROM jobs_async_jobs"))
            assert ours >= stored
            assert connection.in_transaction is within
            if within:
                await connection.execute("ROLLBACK")
                stored = 0
                assert await store.tally() == {}
                assert can_be_written_at_once(path)
                await connection.execute("BEGIN IMMEDIATE")
            else:
                assert can_be_written_at_once(path)


async def test_an_opening_cancelled_at_any_point_leaves_nothing_behind_and_can_be_repeated(path: Path) -> None:
    before = threads()
    late = 0
    for turn in turns():
        path.unlink(missing_ok=True)
        store = SqliteStore(path)
        task = await cancelled_after(turn, store.open())
        assert store.is_open is not task.cancelled()
        late = 0 if task.cancelled() else late + 1
        await until(_all_gone(before, path) if task.cancelled() else _true, 5)
        async with asyncio.timeout(10):
            await store.open()
            await store.insert([new()])
            await store.close()
        await until(_all_gone(before, path))
        if late == 3:
            break


async def test_a_close_cancelled_at_any_point_loses_nothing_acknowledged_and_leaves_nothing_behind(path: Path) -> None:
    before = threads()
    late, acknowledged = 0, 0
    for turn in turns():
        store = SqliteStore(path)
        await store.open()
        writing = [asyncio.create_task(store.insert([new()])) for _ in range(5)]
        await asyncio.sleep(0)
        task = await cancelled_after(turn, store.close())
        assert task.cancelled() or task.exception() is None
        late = 0 if task.cancelled() else late + 1
        await asyncio.wait(writing)
        acknowledged += sum(one.exception() is None for one in writing)
        async with asyncio.timeout(10):
            await store.close()
        await until(_all_gone(before, path))
        assert can_be_written_at_once(path)
        assert ask(path, "SELECT count(*) FROM jobs_async_jobs")[0][0] >= acknowledged
        if late == 3 and turn > 300:
            break


def _all_gone(before: set[Any], path: Path) -> Callable[[], Awaitable[bool]]:
    async def gone() -> bool:
        return threads() <= before and not open_files(path)

    return gone


async def _true() -> bool:
    return True
