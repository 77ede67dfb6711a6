"""Answers that come late, and what has happened meanwhile."""

from __future__ import annotations

import asyncio
import gc

import pytest

from jobs_async import Draft, JobState, StoreError
from jobs_async.testing.faults import Fault, FaultyStore, Plan
from tests.runtime.support import World, now, virtual


def always(primitive: str, fault: Fault) -> Plan:
    return lambda _, called: fault if called == primitive else None


@virtual
async def test_f12_row_3_a_claim_whose_answer_is_slow_is_not_taken_for_a_lost_one(world: World) -> None:
    store = FaultyStore(world.store, always("fetch", Fault(after=2.5)))
    runs: list[int] = []
    async with world.supervisor(store, rescue_interval=1) as jobs:

        @jobs.worker
        async def work(n: int) -> None:
            runs.append(n)

        stored = await jobs.enqueue_many([work.draft(n) for n in range(5)])
        await asyncio.sleep(60)
        assert sorted(runs) == [0, 1, 2, 3, 4]
        assert {(await jobs.get(job.id)).state for job in stored} == {JobState.completed}


@virtual
async def test_f12_row_3_jobs_claimed_with_those_nobody_knows_start_at_once_and_once(world: World) -> None:
    store = FaultyStore(world.store, always("nodes", Fault(hangs=True)))
    starts: list[float] = []
    jobs = world.supervisor(store)

    @jobs.worker
    async def work() -> None:
        starts.append(now())

    strangers = [Draft(f"of others {n}") for n in range(3)]
    await jobs.enqueue_many([*strangers, work.draft()])
    async with jobs:
        await asyncio.sleep(100)
    assert starts == [pytest.approx(0, abs=1)]


@virtual
async def test_f12_a_stop_while_somebody_asks_for_an_end_is_told_of_without_a_complaint(world: World) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    store = FaultyStore(world.store)
    jobs = world.supervisor(store)
    await jobs.start()
    job = await jobs.enqueue("work", delay=100)
    store.plan = always("select", Fault(before=5, error=StoreError))
    waiting = asyncio.get_running_loop().create_task(jobs.wait(job))
    await asyncio.sleep(1)
    await jobs.stop()
    with pytest.raises(StoreError):
        await waiting
    del waiting
    await asyncio.sleep(60)  # until no timer holds on to it
    gc.collect()
    assert not complaints
