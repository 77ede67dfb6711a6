"""Hints between processes: work begins at once however seldom is polled, and is found by polling where they fail."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from jobs_async import ConstantBackoff, Discard, JobContext, JobState, Supervisor, UniqueStrategy, worker
from jobs_async.core.hint import Hint
from jobs_async.stores.postgres import PostgresStore, listener, session
from jobs_async.stores.postgres import store as store_module
from tests.cluster import PgCluster
from tests.postgres.fleet import ON_HINTS, Door, all_ears, ear, hints_of, holds, operator, supervisor, words
from tests.postgres.proxy import Proxy
from tests.postgres.support import ROOT, ask, connected, until

WAIT = 40.0
"""Seconds after which a job was not told of: a poll would come only after an hour."""


@worker
async def work(n: int = 0) -> int:
    return n


@worker(context=True, timeout_seconds=None)
async def linger(ctx: JobContext) -> str:
    await ctx.cancelled.wait()
    return "told"


def awake(dsn: str, **options: Any) -> Supervisor:
    """A node that finds nothing unless it is told."""
    return supervisor(dsn, work, linger, **{**ON_HINTS, **options})


# ------------------------------------------------------------------------------------------------- what is told of


async def test_a_job_of_another_process_starts_at_once(pg_dsn: str) -> None:
    code = """
        import asyncio, sys
        from jobs_async import Supervisor

        async def main():
            print((await Supervisor(sys.argv[1], queues={}).enqueue("work", {"n": 7})).id)

        asyncio.run(main())
    """
    async with awake(pg_dsn) as jobs:
        await all_ears(jobs)
        command = [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), pg_dsn]
        told = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=True)
        ended = await jobs.wait(int(told.stdout), timeout=WAIT)
        assert (ended.result, ended.attempt) == (7, 1)


Way = Callable[[Supervisor, str], Awaitable[int]]


async def plainly(jobs: Supervisor, _dsn: str) -> int:
    return (await jobs.enqueue("work")).id


async def under_a_key(jobs: Supervisor, _dsn: str) -> int:
    return (await jobs.enqueue("work", unique_key="k", unique_strategy=UniqueStrategy.REJECT)).id


async def among_many(jobs: Supervisor, _dsn: str) -> int:
    return (await jobs.enqueue_many([work.draft(n) for n in range(20)]))[-1].id


async def for_later(jobs: Supervisor, _dsn: str) -> int:
    return (await jobs.enqueue("work", delay=0.3)).id


async def in_a_transaction(jobs: Supervisor, dsn: str) -> int:
    async with connected(dsn) as connection, connection.transaction():
        return (await jobs.enqueue("work", connection=connection)).id


@pytest.mark.parametrize("way", [plainly, under_a_key, among_many, for_later, in_a_transaction])
async def test_whatever_way_a_job_takes_into_the_database_it_starts_at_once(pg_dsn: str, way: Way) -> None:
    async with awake(pg_dsn) as jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        job_id = await way(other, pg_dsn)
        assert (await jobs.wait(job_id, timeout=WAIT)).state is JobState.completed


async def test_a_job_of_our_own_in_a_transaction_of_the_application_starts_when_that_commits(pg_dsn: str) -> None:
    """No nudge inside the process can say when that is, so here a node heeds what it said itself."""
    async with awake(pg_dsn) as jobs:
        await all_ears(jobs)
        job_id = await in_a_transaction(jobs, pg_dsn)
        assert (await jobs.wait(job_id, timeout=WAIT)).state is JobState.completed


async def test_a_job_that_is_retried_elsewhere_starts_at_once(pg_dsn: str) -> None:
    fails = [True]

    @worker
    async def once() -> None:
        if fails.pop() if fails else False:
            raise Discard("not now")

    async with supervisor(pg_dsn, once, **ON_HINTS) as jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        job = await other.enqueue("once")
        assert (await jobs.wait(job, timeout=WAIT)).state is JobState.discarded
        await other.retry(job.id)
        assert (await jobs.wait(job, timeout=WAIT)).state is JobState.completed


async def test_a_retry_that_is_due_here_needs_no_hint(pg_dsn: str) -> None:
    tries: list[int] = []

    @worker(retry_strategy=ConstantBackoff(0.2))
    async def flaky() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError

    async with supervisor(pg_dsn, flaky, **ON_HINTS) as jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        job = await other.enqueue("flaky")
        assert (await jobs.wait(job, timeout=WAIT)).attempt == 3


async def test_a_deferred_job_that_comes_to_a_busy_queue_is_not_overlooked(pg_dsn: str) -> None:
    door = Door()

    @worker(context=True)
    async def busy(ctx: JobContext) -> None:
        await door.pass_through(ctx.job.id)

    jobs = supervisor(pg_dsn, busy, work, **ON_HINTS, queues={"default": 1})
    async with jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        held = await other.enqueue("busy")
        await door.holds(held.id)
        heard = hints_of(jobs.store)  # type: ignore[arg-type]
        later = await other.enqueue("work", delay=0.5)
        await until(lambda: holds(lambda: heard))  # and nobody is free to look
        door.opened.set()
        assert (await jobs.wait(later, timeout=WAIT)).state is JobState.completed


async def test_a_cancel_reaches_the_node_at_once(pg_dsn: str) -> None:
    async with awake(pg_dsn) as jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        job = await other.enqueue("linger")
        await until(lambda: runs(other, job.id))
        await other.cancel(job.id)
        ended = await jobs.wait(job, timeout=WAIT)
        assert (ended.state, ended.result) == (JobState.cancelled, "told")


async def runs(jobs: Supervisor, job_id: int) -> bool:
    return (await jobs.get(job_id)).state is JobState.executing


async def test_resume_and_scale_reach_the_node_at_once(pg_dsn: str) -> None:
    door = Door()

    @worker(context=True)
    async def busy(ctx: JobContext) -> None:
        await door.pass_through(ctx.job.id)

    jobs = supervisor(pg_dsn, busy, **ON_HINTS, queues={"default": 1})
    async with jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        await other.pause_queue("default")
        first, second = await other.enqueue_many([busy.draft(), busy.draft()])
        assert [job.state for job in await other.find()] == [JobState.available] * 2
        await other.resume_queue("default")
        await door.holds(first.id)
        assert door.inside == [first.id], "one slot"
        await other.scale_queue("default", 2)
        await door.holds(second.id)
        door.opened.set()
        await jobs.wait(second, timeout=WAIT)


async def test_a_node_does_not_follow_its_own_words(pg_dsn: str) -> None:
    async with awake(pg_dsn) as jobs, operator(pg_dsn) as other:
        await all_ears(jobs)
        assert isinstance(jobs.store, PostgresStore)
        heard = hints_of(jobs.store)
        async with words(pg_dsn, jobs.store) as said:
            await jobs.wait(await jobs.enqueue("work"), timeout=WAIT)
            await jobs.pause_queue("default")
            await jobs.resume_queue("default")
            assert await said() == ["work default", "queue default", "queue default"]
        await other.enqueue("work")
        await until(lambda: holds(lambda: heard))
        assert heard == [Hint("work", "default")]


# ------------------------------------------------------------------------------------------------- what is said


async def test_a_statement_says_one_word_for_each_queue_and_a_transaction_no_more(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (session, store_module):
        monkeypatch.setattr(module, "MAX_ROWS", 10)
    async with PostgresStore(pg_dsn) as store, words(pg_dsn, store) as said:
        jobs = Supervisor(store, queues={})
        await jobs.enqueue_many([work.options(queue="ab"[n % 2]).draft(n) for n in range(50)])
        assert await said() == ["work a", "work b"], "5 statements in one transaction"
        await jobs.enqueue("work", queue="a", unique_key="k")
        assert await said() == ["work a"]
        async with connected(pg_dsn) as connection:
            async with connection.transaction():
                for n in range(3):
                    await jobs.enqueue("work", {"n": n}, queue="a", connection=connection)
                assert await said() == [], "not before it commits"
            assert await said() == ["work a"]
            rolled_back = connection.transaction()
            await rolled_back.start()
            await jobs.enqueue("work", queue="a", connection=connection)
            await rolled_back.rollback()
            assert await said() == []


async def test_without_listen_nobody_says_or_hears_anything(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn, listen=False) as store, words(pg_dsn, store) as said:
        async with supervisor(pg_dsn, work, linger, store=store) as jobs:
            done = await jobs.enqueue_many([work.draft(1), work.options(unique_key="k").draft(2)])
            for each in done:
                await jobs.wait(each, timeout=WAIT)
            cut = await jobs.enqueue("linger")
            await until(lambda: runs(jobs, cut.id))
            await jobs.cancel(cut.id)
            await jobs.wait(cut, timeout=WAIT)
            await jobs.pause_queue("default")
            await jobs.retry(cut.id)
            async with connected(pg_dsn) as connection:
                await jobs.enqueue("work", connection=connection)
            assert store._listener is None
        assert await said() == []


@pytest.mark.parametrize("options", [{"listen": False}, {"pooler": True}], ids=["listen=False", "pooler=True"])
async def test_without_hearing_work_is_found_by_polling(pg_dsn: str, options: dict[str, Any]) -> None:
    store = PostgresStore(pg_dsn, **options)
    async with supervisor(pg_dsn, work, linger, store=store) as jobs, operator(pg_dsn, **options) as other:
        assert store._listener is None
        for n in range(3):
            assert await other.result(await other.enqueue("work", {"n": n}), timeout=WAIT) == n
        assert (await other.wait(await other.enqueue("work", delay=0.2), timeout=WAIT)).attempt == 1
        job = await other.enqueue("linger")
        await until(lambda: runs(other, job.id))
        await other.cancel(job.id)
        assert (await jobs.wait(job, timeout=WAIT)).result == "told"
    assert not await listening(pg_dsn)


async def test_through_a_pooler_others_are_told_all_the_same(pg_dsn: str) -> None:
    async with awake(pg_dsn) as jobs, operator(pg_dsn, pooler=True) as other:
        await all_ears(jobs)
        assert (await jobs.wait(await other.enqueue("work"), timeout=WAIT)).state is JobState.completed


# ------------------------------------------------------------------------------------------------- when it fails

QUICK = {"ECHO_EVERY": 0.2, "ECHO_SECONDS": 0.5}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in QUICK.items():
        monkeypatch.setattr(listener, name, seconds)


async def listening(dsn: str) -> list[int]:
    """The server's processes that serve somebody who listens."""
    name = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE ANY($1)"
    return [pid for (pid,) in await ask(dsn, name, ["LISTEN %", "SELECT pg_notify(%"])]


async def test_an_ear_hears_itself_every_15_seconds() -> None:
    assert (listener.ECHO_EVERY, listener.ECHO_SECONDS) == (15.0, 3.0)


@pytest.mark.usefixtures("quick")
async def test_a_connection_gone_deaf_is_noticed_and_what_was_missed_is_looked_for(
    pg_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(pg_dsn) as proxy, operator(pg_dsn) as other, awake(proxy.dsn) as jobs:
        await all_ears(jobs)
        proxy.swallow(b"LISTEN")  # and no end of the connection is told
        missed = await other.enqueue("work")
        assert (await jobs.wait(missed, timeout=WAIT)).state is JobState.completed
        again = await other.enqueue("work")
        assert (await jobs.wait(again, timeout=WAIT)).state is JobState.completed
        assert [b"LISTEN" in link.said for link in proxy.links].count(True) == 2, "another one"
    told = [record.message for record in caplog.records if "notifications" in record.message]
    assert [text.partition(" (")[0] for text in told] == [
        "notifications of PostgreSQL are not heard",
        "notifications of PostgreSQL are heard again",
    ]


async def test_a_connection_that_the_server_ends_is_made_anew(pg_dsn: str) -> None:
    async with awake(pg_dsn) as jobs, operator(pg_dsn) as other:
        for _ in range(2):
            await all_ears(jobs)
            (pid,) = await listening(pg_dsn)
            await ask(pg_dsn, "SELECT pg_terminate_backend($1)", pid)
            await until(lambda gone=pid: is_gone(pg_dsn, gone))  # type: ignore[misc]
            job = await other.enqueue("work")  # told while nobody listens, or to the next ear
            assert (await jobs.wait(job, timeout=WAIT)).state is JobState.completed


async def is_gone(dsn: str, pid: int) -> bool:
    return pid not in await listening(dsn)


async def test_after_a_restart_of_the_server_hints_are_heard_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with PgCluster.start() as server:
        dsn = server.create_database()
        async with awake(dsn) as jobs:
            await all_ears(jobs)
            await asyncio.to_thread(server.stop, "fast")
            await until(lambda: holds(lambda: "not heard" in caplog.text))
            await asyncio.to_thread(server.start_again)
            async with operator(dsn) as other:
                job = await other.enqueue("work")
                assert (await jobs.wait(job, timeout=WAIT)).state is JobState.completed
                await all_ears(jobs)
                again = await other.enqueue("work")
                assert (await jobs.wait(again, timeout=WAIT)).state is JobState.completed
    assert caplog.text.count("not heard") == 1


async def test_a_server_that_knows_no_listen_is_asked_once_and_polled(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    async def refuse(*_args: object) -> None:
        asked.append(1)
        raise asyncpg.FeatureNotSupportedError("LISTEN not supported yet")

    monkeypatch.setattr(asyncpg.Connection, "add_listener", refuse)
    async with supervisor(pg_dsn, work) as jobs, operator(pg_dsn) as other:
        store = jobs.store
        assert isinstance(store, PostgresStore)
        await until(lambda: holds(ear(store)._task.done))
        assert await other.result(await other.enqueue("work", {"n": 3}), timeout=WAIT) == 3
        assert ear(store).is_deaf
    assert len(asked) == 1
    assert caplog.text.count("LISTEN not supported yet") == 1


async def test_a_word_nobody_of_ours_says_is_not_followed_and_a_follower_that_fails_costs_nothing(
    pg_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with PostgresStore(pg_dsn) as store:
        heard = hints_of(store)

        def fail(hint: Hint) -> None:
            heard.append(hint)
            raise RuntimeError("a follower of hints")

        store.wakes(fail)
        await until(lambda: holds(lambda: not ear(store).is_deaf))
        heard.clear()
        strange = [
            "",
            "x",
            "somebody",
            "somebody work",
            "somebody sings default",
            f"{store._server.hints.origin} work q",
        ]
        async with connected(pg_dsn) as connection:
            for word in [*strange, "somebody work default"]:
                await connection.execute("SELECT pg_notify($1, $2)", store._server.hints.channel, word)
        await until(lambda: holds(lambda: Hint("work", "default") in heard))
        assert {hint.name for hint in heard} <= {"", "default"}
        assert "a hint of PostgreSQL could not be followed" in caplog.text
        assert not ear(store).is_deaf


async def test_a_store_whose_ear_hangs_closes_in_time(pg_dsn: str) -> None:
    async with Proxy(pg_dsn) as proxy:
        store = PostgresStore(proxy.dsn)
        await store.open()
        hints_of(store)
        await until(lambda: holds(lambda: not ear(store).is_deaf))
        proxy.freeze()
        task = ear(store)._task
        async with asyncio.timeout(WAIT):
            await store.close()
        assert task.done()


async def test_a_full_queue_of_notifications_holds_up_no_job_and_no_transaction() -> None:
    with PgCluster.start(settings={"max_notify_queue_pages": 64}) as server:
        dsn = server.create_database()
        async with operator(dsn) as jobs, connected(dsn) as idle:
            await idle.execute("LISTEN other")
            await idle.execute("BEGIN; SELECT 1")  # which keeps all that is said from now on
            with pytest.raises(asyncpg.ProgramLimitExceededError):
                for n in range(1000):
                    await ask(dsn, f"SELECT pg_notify('other', '{n}' || repeat('x', 7900))")
            first = await jobs.enqueue("work")
            assert await jobs.cancel(first.id)
            assert await jobs.retry(first.id)
            async with connected(dsn) as connection, connection.transaction():
                await jobs.enqueue("work", connection=connection)
        assert await ask(dsn, "SELECT count(*) FROM jobs_async_jobs WHERE state = 0") == [(2,)]
