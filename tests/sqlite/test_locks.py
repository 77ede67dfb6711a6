"""An application that keeps the file to itself for a while: what waits, what does not, and what is said."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs_async.core.errors import StoreBusy
from jobs_async.core.job import JobState
from jobs_async.core.store import JobQuery, Node
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import PATIENCE, Holder, done, new


def begun(group: asyncio.TaskGroup, calls: list[Awaitable[Any]]) -> list[asyncio.Task[Any]]:
    async def wait_for(call: Awaitable[Any]) -> Any:
        return await call

    return [group.create_task(wait_for(call)) for call in calls]


async def test_row_71_what_is_asked_during_a_foreign_transaction_of_3_seconds_is_done_after_it(
    store: SqliteStore, path: Path
) -> None:
    await store.beat(Node(id="node"), 60.0, join=True)
    await store.insert([new() for _ in range(20)])
    mine = (await store.fetch("default", 10, node="node")).jobs
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        with Holder(path) as holder:
            async with asyncio.TaskGroup() as group:
                plain = begun(group, [store.insert([new(queue="more")]) for _ in range(20)])
                keyed = begun(group, [store.insert([new(queue="more", unique_key="k")]) for _ in range(3)])
                claims = begun(group, [store.fetch("default", 5, node="node") for _ in range(2)])
                settled = begun(group, [store.apply([done(job)]) for job in mine])
                late = SqliteStore(path)
                others = begun(group, [store.beat(Node(id="node"), 60.0), store.set_queue("mail", paused=True)])
                await late.open()  # needs no lock where the schema is there
                reads = 0
                start = loop.time()
                while loop.time() < start + 3:
                    assert len(await store.select(JobQuery(states=[JobState.executing]))) == 10
                    assert (await store.tally())["default", JobState.available] == 10
                    reads += 1
                waiting = [*plain, *keyed, *claims, *settled, *others]
                assert not any(task.done() for task in waiting)
                assert holder.holds
                assert reads > 10
                holder.let_go()
    await late.close()
    assert len({task.result()[0].id for task in plain}) == 20
    assert [task.result()[0].duplicate for task in keyed] == [False, True, True]
    assert len({job.id for task in claims for job in task.result().jobs}) == 10
    assert all(task.result()[0].state is JobState.completed for task in settled)
    assert others[0].result().alive
    assert await store.tally() == {
        ("default", JobState.completed): 10,
        ("default", JobState.executing): 10,
        ("more", JobState.available): 21,
    }


async def test_an_enqueue_gives_up_after_5_seconds_and_says_what_to_do_but_a_settlement_goes_through(
    store: SqliteStore, path: Path
) -> None:
    await store.insert([new() for _ in range(5)])
    mine = (await store.fetch("default", 5, node=None)).jobs
    jobs = Supervisor(store, queues={})
    async with asyncio.timeout(PATIENCE):
        with Holder(path) as holder:
            async with asyncio.TaskGroup() as group:
                settlements = begun(group, [store.apply([done(job)]) for job in mine])
                enqueues = [
                    jobs.enqueue("work"),
                    jobs.enqueue("work", unique_key="k"),
                    jobs.enqueue("work", idempotency_key="k"),
                    store.insert([new(), new()]),
                ]
                refused = await asyncio.gather(*enqueues, return_exceptions=True)
                assert holder.holds
                assert not any(task.done() for task in settlements)
                holder.let_go()
    for error in refused:
        assert isinstance(error, StoreBusy)
        assert "pass connection= or commit first" in str(error)
    assert all(task.result()[0].state is JobState.completed for task in settlements)
    assert await store.tally() == {("default", JobState.completed): 5}
    assert (await jobs.enqueue("work", unique_key="k")).duplicate is False


async def test_the_loop_stays_free_while_the_file_is_locked(store: SqliteStore, path: Path) -> None:
    loop, turns = asyncio.get_running_loop(), 0
    with Holder(path):
        writing = asyncio.create_task(store.insert([new()]))
        start = loop.time()
        while loop.time() < start + 0.6:
            await asyncio.sleep(0)
            turns += 1
        assert not writing.done()
    await writing
    assert turns > 200, "a wait for the lock was spent in the event loop"


@pytest.mark.soak
async def test_a_settlement_that_waited_for_10_seconds_is_told_and_can_be_repeated(
    store: SqliteStore, path: Path
) -> None:
    await store.insert([new()])
    [job] = (await store.fetch("default", 1, node=None)).jobs
    with Holder(path):
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(StoreBusy):
                await store.apply([done(job)])
    [settled] = await store.apply([done(job)])
    assert settled is not None
    assert settled.state is JobState.completed


async def test_row_72_the_log_that_grew_under_a_pinned_reader_shrinks_when_it_goes(
    store: SqliteStore, path: Path
) -> None:
    log = path.with_name(path.name + "-wal")
    text = f'"{"x" * 100_000}"'
    await store.insert([new()])
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM jobs_async_jobs").fetchone() == (1,)
        for _ in range(6):
            await store.insert([new(args_json=text) for _ in range(20)])
        assert log.stat().st_size > 10_000_000
        assert reader.execute("SELECT count(*) FROM jobs_async_jobs").fetchone() == (1,)
    for _ in range(3):
        await store.insert([new()])
    assert log.stat().st_size <= 8_000_000
