"""Bugs that other job systems had, by their number on the reliability page, where no other test is nearer to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_async import (
    JobInterrupted,
    JobStarted,
    JobState,
    LeaseLost,
    MemoryStore,
    OptionError,
    StaleSettlement,
    StoreBusy,
    StoreFailing,
    StoreRecovered,
    Supervisor,
)
from jobs_async.core.options import NewJob
from jobs_async.core.store import Fetched, Node
from tests.runtime.support import World, now, virtual


class Slow(MemoryStore):
    """Answers a fetch some time after it was done."""

    seconds = 0.0

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        fetched = await super().fetch(queue, limit, node=node)
        await asyncio.sleep(self.seconds)
        return fetched


@virtual
async def test_row_4_a_batch_that_a_stop_meets_on_its_way_is_handed_back_whole(world: World) -> None:
    store = Slow(clock=world.clock)
    jobs = world.supervisor(store, queues={"default": 20})
    ran: list[int] = []

    @jobs.worker
    async def work(n: int) -> None:
        ran.append(n)

    await jobs.start()
    await asyncio.sleep(5)
    store.seconds = 2
    stored = await jobs.enqueue_many([work.draft(n) for n in range(20)])
    await asyncio.sleep(1)
    assert {job.state for job in await jobs.find()} == {JobState.executing}, "claimed, and the answer is on its way"
    report = await jobs.stop()
    assert report.is_clean
    assert ran == []
    rows = [await store.get(job.id) for job in stored]
    assert {(row.state, row.attempt) for row in rows} == {(JobState.available, 0)}
    assert len(world.seen.of(JobInterrupted)) == 20


@virtual
async def test_row_6_an_outcome_is_not_given_up_after_any_number_of_tries(world: World) -> None:
    class Away(MemoryStore):
        tries = 0

        async def apply(self, steps: Any) -> Any:
            self.tries += 1
            if now() < 600:
                raise StoreBusy("away")
            return await super().apply(steps)

    store = Away(clock=world.clock)
    async with world.supervisor(store, queues={"default": 1}) as jobs:
        ran: list[int] = []

        @jobs.worker
        async def work(n: int) -> int:
            ran.append(n)
            return n

        stored = await jobs.enqueue_many([work.draft(n) for n in range(2)])
        await asyncio.sleep(500)
        assert ran == [0], "its slot is held until its outcome is stored"
        assert [await jobs.result(job) for job in stored] == [0, 1]
        assert ran == [0, 1]
        assert store.tries > 50


@virtual
async def test_row_11_a_rescue_is_not_hidden_behind_jobs_that_need_none(world: World) -> None:
    store = MemoryStore(None, clock=world.clock)
    await store.beat(Node(id="alive"), 1e6, join=True)
    await store.beat(Node(id="dead"), 30, join=True)
    await store.insert([NewJob("work", "{}") for _ in range(3_000)])
    assert len((await store.fetch("default", 3_000, node="alive")).jobs) == 3_000
    (orphan,) = await store.insert([NewJob("work", "{}")])
    await store.fetch("default", 1, node="dead")
    async with world.supervisor(store) as jobs:

        @jobs.worker
        async def work() -> str:
            return "rescued"

        assert (await jobs.wait(orphan.id)).result == "rescued"
        assert now() <= 45
        assert (await jobs.counts())["default", JobState.executing] == 3_000


@virtual
async def test_row_13_what_nobody_was_told_of_is_found_by_the_next_poll(world: World) -> None:
    async with world.supervisor(poll_interval=1.0) as jobs:

        @jobs.worker
        async def work() -> float:
            return now()

        for second in range(1, 50):
            await asyncio.sleep(1.37)
            (job,) = await world.store.insert([NewJob("work", "{}")])  # behind the Supervisor's back
            began = now()
            started: Any = (await jobs.wait(job.id)).result
            assert started - began <= 1.5, f"in second {second}"


@virtual
async def test_row_15_what_comes_in_while_a_fetch_is_on_its_way_does_not_wait_for_the_next_poll(world: World) -> None:
    store = Slow(clock=world.clock)
    store.seconds = 2
    async with world.supervisor(store, poll_interval=1000, lease=1e6) as jobs:

        @jobs.worker
        async def work() -> float:
            return now()

        for _ in range(5):
            await asyncio.sleep(0.7)
            began = now()
            assert await jobs.result(await work.enqueue()) - began <= 4


@given(heartbeat=st.floats(0.001, 1e4), lease=st.floats(0.004, 1e4))
def test_row_19_no_configuration_lets_a_late_beat_cost_the_lease(heartbeat: float, lease: float) -> None:
    if lease < 4 * heartbeat:
        with pytest.raises(OptionError, match="4 heartbeats"):
            Supervisor(heartbeat=heartbeat, lease=lease)
    else:
        Supervisor(heartbeat=heartbeat, lease=lease)


@virtual
async def test_row_21_a_late_outcome_gives_its_slot_back_once(world: World) -> None:
    async with world.supervisor(queues={"default": 1}) as jobs:
        running = peak = 0

        @jobs.worker
        async def work(seconds: float) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            try:
                await asyncio.sleep(seconds)
            finally:
                running -= 1

        await work.enqueue(10)
        await world.seen.wait(JobStarted)
        await asyncio.sleep(1)
        assert await world.store.rescue_stuck(0.5) == 1
        stored = await jobs.enqueue_many([work.draft(0.1) for _ in range(10)])
        for job in stored:
            await jobs.wait(job)
        assert len(world.seen.of(StaleSettlement)) == 1
        assert peak == 1


@virtual
async def test_row_65_a_claim_that_hangs_is_told_and_tried_again_while_the_heart_beats_on(world: World) -> None:
    class Wedged(MemoryStore):
        async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
            if now() < 60:
                await asyncio.Event().wait()
            return await super().fetch(queue, limit, node=node)

    async with world.supervisor(Wedged(clock=world.clock)) as jobs:

        @jobs.worker
        async def work() -> str:
            return "done"

        job = await work.enqueue()
        event = await world.seen.wait(StoreFailing)
        assert "claiming from queue default" in event.error_msg
        assert now() < 30
        assert await jobs.result(job) == "done"
        assert (await world.seen.wait(StoreRecovered)).seconds > 30
        assert not world.seen.of(LeaseLost)
