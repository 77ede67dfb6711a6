"""A stop is bounded, loses nothing and can be asked for in any way, at any time, by anybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobs_async import JobInterrupted, JobStarted, JobState, MemoryStore, NotBound, Supervisor, current_context
from jobs_async.core.store import PRIMITIVES, Beat, Fetched, Node
from jobs_async.testing.faults import Fault, FaultyStore
from tests.runtime.support import World, now, virtual


@virtual
async def test_a_job_that_ends_within_the_grace_is_settled(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> str:
        await asyncio.sleep(20)
        return "done"

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    waiting = await work.options(delay=5).enqueue()
    report = await jobs.stop()
    assert report.is_clean
    assert now() == pytest.approx(20, abs=0.1)
    assert (await world.store.get(job.id)).result == "done"
    assert (await world.store.get(waiting.id)).state is JobState.scheduled, "nothing was claimed after the stop"


@virtual
async def test_a_longer_one_is_told_cut_and_handed_back_unharmed(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=10)
    told: list[float] = []

    @jobs.worker
    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            assert current_context().cancelled.is_set()
            told.append(now())
            await asyncio.sleep(1)

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    report = await jobs.stop()
    assert report.is_clean
    assert told == [pytest.approx(10)]
    assert now() == pytest.approx(11, abs=0.1)
    back = await world.store.get(job.id)
    assert (back.state, back.attempt, back.errors) == (JobState.available, 0, ())
    assert world.seen.of(JobInterrupted)[0].job == back


@virtual
async def test_what_was_handed_back_runs_after_a_restart(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=0)
    runs = 0

    @jobs.worker
    async def work() -> str:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0 if runs == 2 else 1000)
        return f"attempt {current_context().attempt}"

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    await jobs.stop()
    assert jobs.is_stopped
    async with jobs:
        assert await jobs.result(job) == "attempt 1"


@virtual
async def test_a_handler_that_will_not_end_is_reported_and_keeps_its_job(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=5)
    enough = asyncio.Event()

    @jobs.worker
    async def deaf() -> None:
        while not enough.is_set():
            try:
                await enough.wait()
            except asyncio.CancelledError:
                continue

    await jobs.start()
    job = await deaf.enqueue()
    await world.seen.wait(JobStarted)
    assert jobs.shutdown_report is None
    report = await jobs.stop()
    assert jobs.shutdown_report == report
    assert now() <= 5 + 6
    assert report.still_running == (job.id,)
    assert not report.is_clean
    assert (await world.store.get(job.id)).state is JobState.executing
    enough.set()


@virtual
async def test_stops_may_come_in_any_number_and_before_any_start(world: World) -> None:
    jobs = world.supervisor()
    assert (await jobs.stop()).is_clean
    await jobs.start()
    await jobs.start()
    reports = await asyncio.gather(*(jobs.stop() for _ in range(10)))
    assert all(report.is_clean for report in reports)
    assert (await jobs.stop()).is_clean


@virtual
async def test_fifty_rounds_of_start_and_stop_at_once(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None: ...

    for _ in range(50):
        await asyncio.gather(jobs.start(), jobs.stop(), work.on(jobs).enqueue(), jobs.start(), jobs.stop())
        await jobs.stop()
    async with jobs:
        while {state for _, state in await jobs.counts()} != {JobState.completed}:
            await asyncio.sleep(1)
    assert sum((await world.store.tally()).values()) == 50


@pytest.mark.parametrize("cancels", [1, 2, 3])
def test_cancelling_the_task_that_runs_it_stops_it_properly(cancels: int) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(shutdown_timeout=10)

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(1000)

        host = asyncio.get_running_loop().create_task(jobs.run())
        job = await work.on(jobs).enqueue()
        await world.seen.wait(JobStarted)
        for _ in range(cancels):
            host.cancel()
            await asyncio.sleep(0.5)
        with pytest.raises(asyncio.CancelledError):
            await host
        assert 10 <= now() <= 16
        assert (await world.store.get(job.id)).state is JobState.available

    scenario()


@virtual
async def test_run_comes_back_when_somebody_else_stops(world: World) -> None:
    jobs = world.supervisor()
    host = asyncio.get_running_loop().create_task(jobs.run())
    while not jobs.is_running:
        await asyncio.sleep(0.1)
    assert (await jobs.stop()).is_clean
    await host
    assert jobs.is_stopped
    assert not host.cancelled()


class Frozen(MemoryStore):
    """A store that from some moment on never answers."""

    frozen = False

    async def _maybe(self) -> None:
        if self.frozen:
            await asyncio.Event().wait()

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        await self._maybe()
        return await super().fetch(queue, limit, node=node)

    async def apply(self, steps: Any) -> Any:
        await self._maybe()
        return await super().apply(steps)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        await self._maybe()
        return await super().beat(node, ttl, join=join)


@virtual
async def test_a_frozen_store_delays_no_stop_beyond_the_grace_and_six_seconds(world: World) -> None:
    store = Frozen(clock=world.clock)
    jobs = world.supervisor(store, shutdown_timeout=10, poll_interval=1)

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(15)

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    store.frozen = True
    await asyncio.sleep(3)
    began = now()
    report = await jobs.stop()
    assert now() - began <= 10 + 6
    assert report.unsettled == (job.id,)


@virtual
async def test_the_lease_is_given_up_though_the_last_question_fails(world: World) -> None:
    store = FaultyStore(world.store)
    jobs = world.supervisor(store)
    await jobs.start()
    await asyncio.sleep(1)
    store.plan = lambda _, primitive: Fault(error=ConnectionError) if primitive == "select" else None
    assert (await jobs.stop()).is_clean
    assert [node.alive for node in await world.store.nodes()] == [False]


@virtual
async def test_a_stranger_that_cancels_the_engine_itself_leaves_no_handler_running_without_a_lease(
    world: World,
) -> None:
    jobs = world.supervisor()
    ends: list[str] = []

    @jobs.worker
    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            assert current_context().cancelled.is_set()
            ends.append("cut")

    await jobs.start()
    await work.enqueue()
    await world.seen.wait(JobStarted)
    await asyncio.sleep(1)
    (engine,) = [task for task in asyncio.all_tasks() if task.get_name() == "jobs_async engine"]
    engine.cancel()
    await asyncio.wait({engine})
    await asyncio.sleep(0)
    assert ends == ["cut"]
    assert not (await jobs.stop()).is_clean


@virtual
async def test_a_store_that_knows_the_primitives_alone_can_be_run(world: World) -> None:
    """It need not inherit anything, so it has no lifeline."""

    class Plain:
        is_open = True

        def __getattr__(self, name: str) -> Any:
            if name in PRIMITIVES or name == "get":
                return getattr(world.store, name)
            raise AttributeError(name)

    async with Supervisor(Plain(), clock=world.clock, max_stall=300) as jobs:

        @jobs.worker
        async def work() -> str:
            return "done"

        assert await jobs.result(await work.enqueue()) == "done"


@virtual
async def test_a_worker_of_a_stopped_supervisor_says_so(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None: ...

    async with jobs:
        await work.enqueue()
    with pytest.raises(NotBound, match=r"\.on\("):
        await work.enqueue()


def test_the_supervisor_closes_only_the_store_it_opened() -> None:
    @virtual
    async def scenario(world: World) -> None:
        opened: list[str] = []

        class Store(MemoryStore):
            up = False

            @property
            def is_open(self) -> bool:
                return self.up

            async def open(self) -> None:
                self.up = True
                opened.append("open")

            async def close(self) -> None:
                self.up = False
                opened.append("close")

        async with world.supervisor(Store()):
            pass
        assert opened == ["open", "close"]
        async with Store() as mine:
            async with world.supervisor(mine) as jobs:
                await jobs.enqueue("x")
            assert opened == ["open", "close", "open"]
        idle = Supervisor(Store(), queues={})
        await idle.enqueue("lazily")
        assert opened[-1] == "open"

    scenario()
