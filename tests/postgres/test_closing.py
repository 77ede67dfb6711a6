"""Closing: what was handed in is answered, and nothing stays; nor does a forgotten close keep a process alive."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest

from jobs_async.core.errors import StoreBusy, StoreClosed, StoreError, StoreTimeout
from jobs_async.core.job import JobState
from jobs_async.core.store import JobQuery, Node
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.postgres import PostgresStore
from tests.postgres.remains import leaving_nothing, no_backends
from tests.postgres.support import PATIENCE, ROOT, ask, connected, done, new, running

LOCKED = "LOCK TABLE jobs_async_jobs, jobs_async_queues, jobs_async_nodes IN ACCESS EXCLUSIVE MODE"


async def test_callers_that_wait_for_a_foreign_lock_are_told_that_the_store_was_closed(pg_dsn: str) -> None:
    async with leaving_nothing():
        store = PostgresStore(pg_dsn)
        await store.open()
        await store.insert([new()])
        [job] = (await store.fetch("default", 1, node=None)).jobs
        async with connected(pg_dsn) as holder, holder.transaction():
            await holder.execute(LOCKED)
            calls: list[Awaitable[object]] = [
                *(store.insert([new()]) for _ in range(20)),
                *(store.insert([new(unique_key="k")]) for _ in range(20)),
                store.fetch("default", 1, node=None),
                store.apply([done(job)]),
                store.set_queue("q", paused=True),
                store.select(JobQuery()),
                store.beat(Node(id="node"), 30.0, join=True),
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0.2)
            async with asyncio.timeout(PATIENCE):
                await store.close()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            busy = [answer for answer in answers if isinstance(answer, StoreBusy)]  # a settlement may give up first
            assert len(busy) <= 1, answers
            assert {type(answer) for answer in answers if answer not in busy} == {StoreClosed}, answers
            assert any("may be written" in str(answer) for answer in answers)
            await no_backends(pg_dsn)  # what the server was at when it was cut off gives up its wait by itself
        assert await ask(pg_dsn, "SELECT state, count(*) FROM jobs_async_jobs GROUP BY state") == [(1, 1)]


async def test_a_close_during_calls_answers_each_and_tells_no_caller_a_lie(pg_dsn: str) -> None:
    """What was stored is told as stored; what is told as refused may be stored only where the error says so."""
    acknowledged = 0
    async with leaving_nothing():
        for turn in range(12):
            store = PostgresStore(pg_dsn)
            await store.open()
            tasks = [asyncio.ensure_future(store.insert([new()])) for _ in range(30)]
            tasks += [asyncio.ensure_future(store.insert([new(unique_key=f"{turn} {n}")])) for n in range(10)]
            reads = [asyncio.ensure_future(store.select(JobQuery())) for _ in range(5)]
            for _ in range(turn * 5):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await store.close()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                rows = await asyncio.gather(*reads, return_exceptions=True)
            errors = [answer for answer in (*answers, *rows) if isinstance(answer, BaseException)]
            assert all(isinstance(error, StoreError) for error in errors), errors
            acknowledged += sum(not isinstance(answer, BaseException) for answer in answers)
        await no_backends(pg_dsn)
    [(stored,)] = await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs")
    assert acknowledged <= stored <= 12 * 40
    assert acknowledged


async def test_a_close_that_is_cancelled_has_closed_all_the_same_and_does_not_swallow_the_cancellation(
    pg_dsn: str,
) -> None:
    async with leaving_nothing():
        store = PostgresStore(pg_dsn)
        await store.open()
        async with connected(pg_dsn) as holder, holder.transaction():
            await holder.execute(LOCKED)
            waiting = asyncio.ensure_future(store.insert([new()]))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(store.close())
            await asyncio.sleep(0)
            closing.cancel()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait({closing, waiting})
            assert isinstance(waiting.exception(), StoreError)
        assert closing.cancelled()
        assert not store.is_open
        await no_backends(pg_dsn)


async def test_every_operation_of_a_closed_store_says_that_it_is_closed(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn) as store:
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
        "get_records": lambda: store.get_records("kind"),
    }
    for operation in operations.values():
        with pytest.raises(StoreClosed, match="is not open"):
            await operation()
    with pytest.raises(StoreClosed, match="is not open"):
        store.wakes(lambda _: None)
    assert not store.is_open


async def test_close_may_be_called_at_any_time_and_any_number_of_times(pg_dsn: str) -> None:
    async with leaving_nothing():
        store = PostgresStore(pg_dsn)
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
        await no_backends(pg_dsn)
    assert await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs") == [(3,)]


async def test_a_closed_store_leaves_no_connection_no_task_and_no_thread(pg_dsn: str) -> None:
    async with leaving_nothing():
        for _ in range(3):
            async with PostgresStore(pg_dsn) as store:
                await store.insert([new(), new(unique_key="k")])
                store.wakes(lambda _: None)
                await store.beat(Node(id="node"), 30.0, join=True)
                assert (await store.fetch("default", 2, node="node")).jobs
                await asyncio.gather(*(store.tally() for _ in range(20)))
                await store.delete_completed(0)
                lifeline = store.lifeline()
                assert await asyncio.to_thread(lifeline.renew, "node", 30.0)
                await asyncio.to_thread(lifeline.close)
            await no_backends(pg_dsn)


async def test_row_43_a_store_holds_no_more_connections_than_it_says(pg_dsn: str) -> None:
    """Five for what must not wait, and its pool; however many callers there are."""
    most = 0
    async with PostgresStore(pg_dsn, pool_size=3) as store:
        store.wakes(lambda _: None)
        calls: list[Awaitable[object]] = [store.tally() for _ in range(60)]
        calls += [store.insert([new()]) for _ in range(60)]
        calls += [store.insert([new(unique_key=f"{n}")]) for n in range(60)]
        calls += [store.fetch("default", 1, node=None) for _ in range(60)]
        calls += [store.beat(Node(id=f"{n}"), 30.0, join=True) for n in range(20)]
        work = asyncio.gather(*calls)
        while not work.done():
            [(count,)] = await ask(
                pg_dsn,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND application_name <> 'onlooker'",
            )
            most = max(most, count)
        await work
    assert 1 < most <= 5 + 3


async def test_a_supervisor_does_not_close_a_store_that_it_was_given_open(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn) as store:
        jobs = Supervisor(store)
        async with asyncio.timeout(PATIENCE), jobs:
            await jobs.enqueue("work")
        assert store.is_open
        assert sum((await store.tally()).values()) == 1


async def test_row_50_callers_that_find_no_free_connection_are_told_so_and_drain_none(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while they wait for one, or while they have one: afterwards as many are free as there were."""
    monkeypatch.setattr("jobs_async.stores.postgres.line.CALL_SECONDS", 1.0)
    async with PostgresStore(pg_dsn, pool_size=2) as store:
        async with connected(pg_dsn) as holder, holder.transaction():
            await holder.execute(LOCKED)
            calls = [asyncio.ensure_future(store.tally()) for _ in range(10)]
            await asyncio.sleep(0.05)
            for call in calls[::3]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {asyncio.CancelledError, StoreTimeout, StoreError}
        assert any("raise pool_size" in str(answer) for answer in answers)
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*(store.tally() for _ in range(10))) == [{}] * 10


# --- processes ---

WHATS = ("store", "busy_store", "supervisor", "producer")
QUIET = ("store", "producer")
"""With nothing under way there is nothing to complain about either."""
HOWS = {"returns": 0, "raises": 1, "exits": 3}


@pytest.mark.parametrize(("what", "how"), [("store", "returns"), *((what, "raises") for what in WHATS)])
async def test_row_73_a_process_that_closes_nothing_ends_by_itself_within_2_seconds(
    pg_dsn: str, what: str, how: str
) -> None:
    await _ends_by_itself(pg_dsn, what, how)


@pytest.mark.soak
@pytest.mark.parametrize("how", [*HOWS, "collects"])
@pytest.mark.parametrize("what", WHATS)
async def test_row_73_however_a_process_ends_it_leaves_no_connection(pg_dsn: str, what: str, how: str) -> None:
    await _ends_by_itself(pg_dsn, what, how)


async def _ends_by_itself(dsn: str, what: str, how: str) -> None:
    with running("forgotten", dsn, what, how) as process:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == "leaving\n", process.communicate()[1]
        _, err = await asyncio.to_thread(process.communicate, timeout=2)
    assert process.returncode == HOWS.get(how, 0), err
    if what in QUIET:
        assert err.count("Traceback") == (how == "raises"), err
    await no_backends(dsn)


def test_a_store_says_that_it_belongs_to_another_loop_and_is_opened_again_in_a_new_one(pg_dsn: str) -> None:
    program = """
import asyncio, sys
from jobs_async import StoreError, Supervisor
from jobs_async.stores.postgres import PostgresStore

dsn = sys.argv[1]

async def elsewhere(store):
    for call in (store.enqueue("work"), store.tally(), store.claim("default"), store.insert([])):
        try:
            await call
        except StoreError as error:
            assert "another event loop" in str(error), error
        else:
            raise AssertionError(call)
    return "refused"

async def main():
    async with PostgresStore(dsn) as store:
        print(await asyncio.to_thread(lambda: asyncio.run(elsewhere(store))))

asyncio.run(main())
jobs, store = Supervisor(dsn), PostgresStore(dsn)

async def again():
    job = await jobs.enqueue("work")
    await store.open()  # and not closed: its loop takes it along
    await store.enqueue("work")
    print("stored", job.id, sum((await store.tally()).values()))

asyncio.run(again())
asyncio.run(again())

async def properly():
    async with store:
        print(sum((await store.tally()).values()))

asyncio.run(properly())
"""
    command = [sys.executable, "-c", program, pg_dsn]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused", "stored 1 2", "stored 3 4", "4"]
