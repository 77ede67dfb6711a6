"""Where two things happen at once: each of these lost, doubled or wedged a job once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobs_async import (
    Event,
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobEnqueued,
    JobOpts,
    JobStarted,
    JobState,
    MemoryStore,
    OptionError,
    StoreBusy,
    StoreClosed,
    Supervisor,
    UniqueStrategy,
    current_context,
)
from jobs_async.core.errors import WriteRefused
from jobs_async.core.store import Beat, Node
from tests.runtime.support import World, now, virtual


class Store(MemoryStore):
    """Fails in the ways a test asks for."""

    refuses: Any = staticmethod(lambda step: False)
    away_until = 0.0
    slow_start = 0.0

    async def apply(self, steps: Any) -> Any:
        if now() < self.away_until:
            raise StoreBusy("away")
        if any(self.refuses(step) for step in steps):
            raise WriteRefused("never")
        return await super().apply(steps)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        if join and self.slow_start:
            await asyncio.sleep(self.slow_start)
        return await super().beat(node, ttl, join=join)


@virtual
async def test_a_stop_uses_its_grace_to_settle_what_has_ended(world: World) -> None:
    store = Store(clock=world.clock)
    jobs = world.supervisor(store)

    @jobs.worker
    async def work() -> str:
        store.away_until = now() + 10
        return "done"

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    report = await jobs.stop()
    assert report.is_clean
    assert (await store.get(job.id)).result == "done"


@virtual
async def test_a_job_cancelled_while_its_claim_is_told_of_never_starts(world: World) -> None:
    async with world.supervisor() as jobs:
        ran: list[int] = []

        async def slow(event: Event) -> None:
            if isinstance(event, JobStarted):
                await jobs.cancel(event.job.id)
                await asyncio.sleep(4)

        assert jobs.telemetry is not None
        jobs.telemetry.attach(slow)

        @jobs.worker
        async def work() -> None:
            ran.append(1)

        ended = await jobs.wait(await work.enqueue())
        assert (ended.state, ran) == (JobState.cancelled, [])


@virtual
async def test_a_sync_handler_that_returns_a_coroutine_is_timed_out(world: World) -> None:
    async def hang() -> None:
        await asyncio.sleep(10_000)

    async with world.supervisor() as jobs:
        jobs.register_worker("work", lambda args, ctx: hang(), opts=JobOpts(max_attempts=1, timeout_seconds=5))
        ended = await jobs.wait(await jobs.enqueue("work"))
        assert ended.last_error
        assert ended.last_error.type == "Timeout"


@virtual
async def test_a_retry_strategy_that_hangs_is_done_without(world: World) -> None:
    async def hang(_index: int) -> float:
        await asyncio.sleep(10_000)
        return 1

    async with world.supervisor() as jobs:

        @jobs.worker(max_attempts=2, retry_strategy=hang)
        async def work() -> None:
            raise OSError

        await jobs.wait(await work.enqueue())
        assert now() < 30


@pytest.mark.parametrize("whatever", [False, True])
def test_row_8_a_settlement_the_store_never_takes_ends_its_own_job_only(whatever: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = Store(clock=world.clock)
        async with world.supervisor(store, queues={"default": 6}) as jobs:

            @jobs.worker
            async def work(n: int) -> int:
                return n

            first = await work.options(delay=1).enqueue(0)
            store.refuses = lambda step: step.job.id == first.id and (whatever or step.result is not None)
            others = await jobs.enqueue_many([work.options(delay=1).draft(n) for n in range(1, 6)])
            assert [await jobs.result(job) for job in others] == [1, 2, 3, 4, 5]
            if not whatever:
                assert (await world.seen.wait(JobDiscarded, first)).error_msg.startswith("its settlement was refused")
            store.refuses = lambda step: False
            await jobs.wait(first)

    scenario()


@virtual
async def test_row_61_a_stop_during_a_start_stops_what_was_started(world: World) -> None:
    store = Store(clock=world.clock)
    store.slow_start = 2
    jobs = world.supervisor(store)
    starting = asyncio.get_running_loop().create_task(jobs.start())
    await asyncio.sleep(1)
    await jobs.stop()
    await starting
    assert not jobs.is_running
    assert jobs.is_stopped


@virtual
async def test_a_stop_whose_caller_is_cancelled_goes_on_to_its_end(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(10)

    await jobs.start()
    await work.enqueue()
    await world.seen.wait(JobStarted)
    caller = asyncio.get_running_loop().create_task(jobs.stop())
    await asyncio.sleep(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await jobs.stop()
    assert jobs.is_stopped
    assert len(world.seen.of(JobCompleted)) == 1


@virtual
async def test_a_handler_replaced_from_another_node_is_told_with_the_next_beat(world: World) -> None:
    async with world.supervisor() as jobs, world.supervisor(queues={}) as elsewhere:
        told: list[float] = []

        @jobs.worker
        async def work() -> None:
            await current_context().cancelled.wait()
            told.append(now())

        old = await work.on(jobs).options(unique_key="k").enqueue()
        await world.seen.wait(JobStarted, old)
        await elsewhere.enqueue(
            "other", unique_key="k", unique_strategy=UniqueStrategy.CANCEL_EXISTING, queue="nobody runs it"
        )
        await asyncio.sleep(5.1)
        assert told


@virtual
async def test_every_replaced_job_is_told_of(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        drafts = [("work", f"k{n}") for n in range(150)]
        for _ in range(2):
            for name, key in drafts:
                await jobs.enqueue(name, unique_key=key, unique_strategy=UniqueStrategy.CANCEL_EXISTING)
        assert len(world.seen.of(JobCancelled)) == 150


@virtual
async def test_a_job_whose_enqueuer_was_cancelled_is_told_of_and_started_all_the_same(world: World) -> None:
    class Slow(MemoryStore):
        async def insert(self, new: Any, *, tick: Any = None) -> Any:
            jobs = await super().insert(new, tick=tick)
            await asyncio.sleep(1)
            return jobs

    async with world.supervisor(Slow(clock=world.clock), poll_interval=3600) as jobs:

        @jobs.worker
        async def work() -> None: ...

        caller = asyncio.get_running_loop().create_task(work.enqueue())
        await asyncio.sleep(0.5)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert now() == pytest.approx(0.5)
        await world.seen.wait(JobCompleted)
        assert world.seen.events[0].type == JobEnqueued.type
        assert now() < 2


@virtual
async def test_a_handler_is_cut_once_and_may_clean_up(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=1)
    cleaned: list[float] = []

    @jobs.worker(timeout_seconds=5)
    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(3)
            cleaned.append(now())

    await jobs.start()
    await work.enqueue()
    await asyncio.sleep(6)  # timed out, and cleaning up
    await jobs.stop()
    assert cleaned == [pytest.approx(8)]


@virtual
async def test_waiting_goes_on_after_a_restart_and_is_told_of_a_stop(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> int:
        return 1

    await jobs.start()
    later = await work.options(delay=100).enqueue()
    waiting = asyncio.get_running_loop().create_task(jobs.wait(later))
    await asyncio.sleep(1)
    await jobs.stop()
    with pytest.raises(StoreClosed, match="stopped"):
        await waiting
    async with jobs:
        assert await jobs.result(later) == 1


@virtual
async def test_an_async_telemetry_handler_that_hangs_is_cut(world: World) -> None:
    async with world.supervisor() as jobs:

        async def hang(event: Event) -> None:
            await asyncio.sleep(10_000)

        assert jobs.telemetry is not None
        jobs.telemetry.attach(hang)

        @jobs.worker
        async def work() -> None: ...

        await jobs.wait(await work.enqueue())
        assert now() <= 3 * 5 + 1


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs: jobs.enqueue("work", {}, opts={"queue": "a"}),
        lambda jobs: jobs.enqueue_many(["work"]),
        lambda jobs: jobs.enqueue_many("work"),
        lambda jobs: jobs.enqueue_many(5),
        lambda jobs: jobs.wait("1"),
        lambda jobs: jobs.find("work"),
        lambda jobs: jobs.scale_queue("default", 0),
        lambda jobs: jobs.pause_queue(""),
    ],
)
async def test_a_wrong_argument_is_an_option_error_at_the_call(call: Any) -> None:
    jobs = Supervisor(queues={})
    with pytest.raises(OptionError):
        await call(jobs)
    assert await jobs.counts() == {}
