"""Watching a job: each record that differs, to the last, wherever it runs."""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

import pytest

from jobs_async import (
    ConstantBackoff,
    Job,
    JobNotFound,
    JobStarted,
    JobState,
    OptionError,
    StoreBusy,
    StoreClosed,
    Supervisor,
    current_context,
)
from jobs_async.testing.faults import Fault, FaultyStore
from tests.runtime.support import World, now, virtual


async def collect(jobs: Supervisor, job: Job[Any] | int, **options: Any) -> list[Job[Any]]:
    return [record async for record in jobs.watch(job, **options)]


def shown(records: list[Job[Any]]) -> list[tuple[str, float | None]]:
    return [(job.state.name, job.progress.fraction if job.progress else None) for job in records]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_states_and_progress_are_seen_up_to_the_typed_end(where: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor() as runner, world.supervisor(queues={}) as elsewhere:

            @runner.worker
            async def work() -> tuple[int, int]:
                for step in (0.25, 0.5, 0.75):
                    await asyncio.sleep(2)
                    await current_context().progress(step, "on the way")
                await asyncio.sleep(2)
                return 1, 2

            elsewhere.register_worker(work)
            job = await work.on(runner).options(delay=10).enqueue()
            watcher = runner if where == "here" else elsewhere
            records = [record async for record in watcher.watch(job)]
            assert_type(records, list[Job[tuple[int, int]]])
            assert shown(records) == [
                ("scheduled", None),
                ("executing", None),
                ("executing", 0.25),
                ("executing", 0.5),
                ("executing", 0.75),
                ("completed", 0.75),
            ]
            assert records[-1].result == (1, 2), "what its worker returns, not a list"
            assert now() == pytest.approx(18, abs=0.2 if where == "here" else 1.1)

    scenario()


@virtual
async def test_the_end_is_seen_at_once_here_however_long_the_interval(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(7)

        records = await collect(jobs, await work.enqueue(), interval=1000)
        assert records[-1].state is JobState.completed
        assert now() == pytest.approx(7, abs=0.1)


@virtual
async def test_attempts_are_seen(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker(max_attempts=2, retry_strategy=ConstantBackoff(5))
        async def work() -> None:
            await asyncio.sleep(5)
            raise OSError

        records = await collect(jobs, await work.enqueue())
        seen = [(job.state.name, job.attempt, len(job.errors)) for job in records]
        assert seen[-3:] == [("retryable", 1, 1), ("executing", 2, 1), ("discarded", 2, 2)]


@virtual
async def test_an_ended_job_is_shown_once(world: World) -> None:
    jobs = world.supervisor(queues={})
    job = await jobs.enqueue("work")
    await jobs.cancel(job)
    assert shown(await collect(jobs, job.id)) == [("cancelled", None)]


@virtual
async def test_who_is_slow_sees_what_is_there_then(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> str:
            await asyncio.sleep(10)
            return "done"

        records, job = [], await work.enqueue()
        await world.seen.wait(JobStarted)
        async for record in jobs.watch(job):
            records.append(record)
            await asyncio.sleep(100)
        assert [record.state.name for record in records] == ["executing", "completed"]
        assert records[-1].result == "done"


@virtual
async def test_a_deletion_ends_it(world: World) -> None:
    jobs = world.supervisor(queues={})
    job = await jobs.enqueue("work")
    records = []
    with pytest.raises(JobNotFound):
        async for record in jobs.watch(job):
            records.append(record)
            await jobs.delete(job)
    assert len(records) == 1
    with pytest.raises(JobNotFound):
        await collect(jobs, 12345)


@pytest.mark.parametrize("moment", ["while it waits", "while the record is looked at"])
def test_a_stop_ends_it(moment: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor()
        await jobs.start()
        job = await jobs.enqueue("work", delay=1000)
        records = []
        with pytest.raises(StoreClosed, match="stopped before"):
            async with asyncio.timeout(100):
                async for record in jobs.watch(job):
                    records.append(record)
                    if moment == "while it waits":
                        stopping = asyncio.get_running_loop().create_task(_stop_later(jobs))
                    else:
                        await jobs.stop()
        assert len(records) == 1
        if moment == "while it waits":
            await stopping

    scenario()


async def _stop_later(jobs: Supervisor) -> None:
    await asyncio.sleep(5.1)
    await jobs.stop()


@virtual
async def test_leaving_early_leaves_nothing_behind(world: World) -> None:
    async with world.supervisor() as jobs:
        before = asyncio.all_tasks()

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(1000)

        job = await work.enqueue()
        async for _record in jobs.watch(job):
            break
        watching = asyncio.get_running_loop().create_task(collect(jobs, job))
        await world.seen.wait(JobStarted)
        await asyncio.sleep(10)
        watching.cancel()
        await asyncio.wait({watching})
        await asyncio.sleep(2)  # the poller's last look
        left = {task for task in asyncio.all_tasks() - before if task.get_name() != "work"}
        assert not left
        await jobs.cancel(job)


@virtual
async def test_a_store_that_is_away_is_an_error_and_one_that_is_slow_is_not(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store) as jobs:

        @jobs.worker
        async def work() -> str:
            await asyncio.sleep(20)
            return "done"

        store.plan = lambda _, primitive: Fault(before=2, after=2) if primitive == "select" else None
        assert (await collect(jobs, await work.enqueue()))[-1].result == "done"
        store.calm()
        job = await work.enqueue()
        with pytest.raises(StoreBusy):
            async for _record in jobs.watch(job):
                store.plan = lambda _, primitive: Fault(error=StoreBusy("away")) if primitive == "select" else None
        store.calm()


@pytest.mark.parametrize("interval", [0, -1, "1", None])
def test_the_interval_is_a_duration(interval: Any) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={})
        with pytest.raises(OptionError, match="interval"):
            await collect(jobs, await jobs.enqueue("work"), interval=interval)
        with pytest.raises(OptionError, match="id"):
            await collect(jobs, "7")  # type: ignore[arg-type]

    scenario()
