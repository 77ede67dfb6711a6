"""Closing: what was handed in is answered, and nothing stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jobs_async.core.errors import StoreClosed
from jobs_async.core.job import JobState
from jobs_async.core.store import JobQuery, Node
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import PATIENCE, Holder, ask, can_be_written_at_once, done, new, open_files, threads, until


async def test_callers_that_wait_for_a_foreign_lock_are_told_that_the_store_was_closed(
    store: SqliteStore, path: Path
) -> None:
    await store.insert([new()])
    [job] = (await store.fetch("default", 1, node=None)).jobs
    with Holder(path):
        calls: list[Awaitable[object]] = [
            *(store.insert([new()]) for _ in range(20)),
            store.insert([new(unique_key="k")]),
            store.apply([done(job)]),
            store.set_queue("q", paused=True),
            store.beat(Node(id="node"), 30.0, join=True),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await store.close()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreClosed] * len(tasks)
    assert ask(path, "SELECT state, count(*) FROM jobs_async_jobs GROUP BY state") == [(int(JobState.executing), 1)]


async def test_a_close_under_a_foreign_lock_takes_less_than_2_seconds_however_many_wait(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    with Holder(path) as holder:
        tasks = [asyncio.ensure_future(store.insert([new()])) for _ in range(3000)]
        await asyncio.sleep(0)
        start = asyncio.get_running_loop().time()
        await store.close()
        took = asyncio.get_running_loop().time() - start
        assert holder.holds
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert took < 2
    assert {type(answer) for answer in answers} == {StoreClosed}


async def test_a_close_that_is_cancelled_has_closed_all_the_same_and_does_not_swallow_the_cancellation(
    path: Path,
) -> None:
    before = threads()
    store = SqliteStore(path)
    await store.open()
    with Holder(path):
        waiting = asyncio.ensure_future(store.insert([new()]))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        closing.cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({closing, waiting})
        assert isinstance(waiting.exception(), StoreClosed)
    assert closing.cancelled()

    async def nothing_left() -> bool:
        return threads() <= before and not open_files(path)

    await until(nothing_left, 5)


async def test_what_was_handed_in_before_the_close_is_stored_or_refused_and_the_caller_knows_which(
    path: Path,
) -> None:
    for turn in range(15):
        store = SqliteStore(path)
        await store.open()
        before = (await store.tally()).get(("default", JobState.available), 0)
        tasks = [asyncio.ensure_future(store.insert([new()])) for _ in range(30)]
        reads = [asyncio.ensure_future(store.select(JobQuery())) for _ in range(5)]
        for _ in range(turn * 3):
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await store.close()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            rows = await asyncio.gather(*reads, return_exceptions=True)
        errors = [answer for answer in answers + rows if isinstance(answer, BaseException)]
        assert all(isinstance(error, StoreClosed) for error in errors), errors
        ((after,),) = ask(path, "SELECT count(*) FROM jobs_async_jobs")
        assert after - before == sum(not isinstance(answer, BaseException) for answer in answers)


async def test_every_operation_of_a_closed_store_says_that_it_is_closed(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.insert([new()])
        [job] = (await store.fetch("default", 1, node=None)).jobs
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "insert": lambda: store.insert([new()]),
        "insert keyed": lambda: store.insert([new(unique_key="k")]),
        "fetch": lambda: store.fetch("default", 1, node=None),
        "apply": lambda: store.apply([done(job)]),
        "select": lambda: store.select(JobQuery()),
        "delete": lambda: store.delete([job.id]),
        "purge": lambda: store.purge([JobState.completed], 0),
        "tally": store.tally,
        "set_queue": lambda: store.set_queue("q", paused=True),
        "queues": store.queues,
        "beat": lambda: store.beat(Node(id="n"), 1.0, join=True),
        "nodes": store.nodes,
    }
    for operation in operations.values():
        with pytest.raises(StoreClosed, match="is not open"):
            await operation()
    assert not store.is_open


async def test_close_may_be_called_at_any_time_and_any_number_of_times(path: Path) -> None:
    store = SqliteStore(path)
    await store.close()
    await store.open()
    await store.open()
    await asyncio.gather(*(store.close() for _ in range(5)))
    await store.close()
    for _ in range(3):
        async with store:
            await store.insert([new()])
    await asyncio.gather(*(call() for call in [store.open, store.close] * 5))
    await store.close()
    assert ask(path, "SELECT count(*) FROM jobs_async_jobs") == [(3,)]


async def test_a_closed_store_leaves_no_thread_no_task_and_no_file_open(path: Path) -> None:
    before, tasks = threads(), asyncio.all_tasks()
    for _ in range(5):
        async with SqliteStore(path) as store:
            await store.insert([new()])
            assert (await store.fetch("default", 1, node=None)).jobs
            assert threads() - before  # a thread of somebody else may be ending meanwhile
            assert open_files(path)
        assert asyncio.all_tasks() == tasks

        async def nothing_left() -> bool:
            return threads() <= before

        await until(nothing_left, 2)
        assert open_files(path) == []
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert can_be_written_at_once(path)


async def test_a_stopped_supervisor_leaves_no_thread_no_task_and_no_file_open(path: Path) -> None:
    before, tasks = threads(), asyncio.all_tasks()
    jobs = Supervisor(f"sqlite:///{path}")

    @jobs.worker
    async def work() -> int:
        return 7

    for _ in range(3):
        async with asyncio.timeout(PATIENCE), jobs:
            assert await jobs.result(await work.enqueue()) == 7
        assert asyncio.all_tasks() == tasks

        async def nothing_left() -> bool:
            return threads() <= before

        await until(nothing_left, 2)
        assert open_files(path) == []


async def test_a_supervisor_does_not_close_a_store_that_it_was_given_open(store: SqliteStore) -> None:
    jobs = Supervisor(store)
    async with asyncio.timeout(PATIENCE), jobs:
        await jobs.enqueue("work")
    assert store.is_open
    assert sum((await store.tally()).values()) == 1
