"""Ten stories that every job system must be able to tell, on every store, with time that the test moves."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from jobs_async import (
    ConstantBackoff,
    DrainReport,
    Event,
    Job,
    JobCancelled,
    JobContext,
    JobState,
    Store,
    Supervisor,
    Telemetry,
    UniqueConflict,
    UniqueStrategy,
    WorkerDef,
    worker,
)
from jobs_async.testing import Harness, TravelClock

GUARD = 20.0
HOUR = 3600.0

ran: list[object] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@worker
async def note(what: str) -> str:
    ran.append(what)
    return what.upper()


@worker(max_attempts=4, retry_strategy=ConstantBackoff(60))
async def stumble(times: int) -> int:
    ran.append(times)
    if len(ran) <= times:
        raise ConnectionError("not yet")
    return len(ran)


WORKERS: list[WorkerDef] = [note, stumble]


async def state(jobs: Supervisor, job: Job[object]) -> JobState:
    return (await jobs.get(job)).state


async def test_1_scheduling_a_job_runs_when_its_time_has_come_and_not_before(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock) as jobs:
        soon = await note.options(delay=HOUR).enqueue("soon")
        later = await note.options(scheduled_at=jobs_clock.now() + timedelta(hours=3)).enqueue("later")
        assert (soon.state, later.state) == (JobState.scheduled, JobState.scheduled)
        assert (await jobs.drain()).total == 0
        jobs.advance(HOUR + 1)
        assert (await jobs.drain()).completed == 1
        assert ran == ["soon"]
        assert (await state(jobs, soon), await state(jobs, later)) == (JobState.completed, JobState.scheduled)
        jobs.advance(3 * HOUR)
        await jobs.drain()
        assert ran == ["soon", "later"]


async def test_2_retry_a_failure_is_kept_and_tried_again_after_its_back_off_until_attempts_are_spent(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock) as jobs:
        job = await stumble.enqueue(2)
        for attempt in (1, 2):
            assert (await jobs.drain()).failed == 1
            failed = await jobs.get(job)
            assert (failed.state, failed.attempt) == (JobState.retryable, attempt)
            assert [error.error for error in failed.errors] == ["ConnectionError: not yet"] * attempt
            assert (await jobs.drain()).total == 0, "the back-off has not passed"
            jobs.advance(76)
        assert (await jobs.drain()).completed == 1
        assert await jobs.result(job) == 3
        ran.clear()
        hopeless = await stumble.enqueue(99)
        assert await jobs.drain(with_scheduled=True) == DrainReport(failed=3, discarded=1)
        assert await state(jobs, hopeless) is JobState.discarded


async def test_3_unique_one_live_job_a_key_and_a_choice_of_what_becomes_of_the_second(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock) as jobs:
        first = await note.options(unique_key="report").enqueue("first")
        again = await note.options(unique_key="report").enqueue("second")
        assert (again.id, again.duplicate) == (first.id, True)
        with pytest.raises(UniqueConflict):
            await note.options(unique_key="report", unique_strategy=UniqueStrategy.REJECT).enqueue("third")
        replacing = note.options(unique_key="report", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
        newer = await replacing.enqueue("fourth")
        assert newer.replaces == first.id
        assert await state(jobs, first) is JobState.cancelled
        await jobs.drain()
        assert ran == ["fourth"]
        assert not (await note.options(unique_key="report").enqueue("fifth")).duplicate, "its end frees the key"


async def test_4_cancel_a_waiting_job_never_runs_and_a_running_one_is_told(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    running = asyncio.Event()

    @worker(context=True)
    async def long(ctx: JobContext) -> str:
        running.set()
        await ctx.cancelled.wait()
        return "tidied up"

    async with Harness(jobs_store, workers=[*WORKERS, long], clock=jobs_clock) as jobs:
        waiting = await note.enqueue("never")
        await jobs.cancel(waiting)
        job = await long.enqueue()
        await jobs.start()
        async with asyncio.timeout(GUARD):
            await running.wait()
            await jobs.cancel(job)
            ended = await jobs.wait(job)
        assert (ended.state, ended.result) == (JobState.cancelled, "tidied up")
        assert await state(jobs, waiting) is JobState.cancelled
        assert ran == []


async def test_5_drain_runs_everything_that_can_run_and_says_how_it_went(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    @worker(max_attempts=1)
    async def tree(depth: int) -> None:
        ran.append(depth)
        for _ in range(2 if depth else 0):
            await tree.enqueue(depth - 1)
        if depth == 3:
            raise ValueError("the root is rotten")

    async with Harness(jobs_store, workers=[*WORKERS, tree], clock=jobs_clock) as jobs:
        await tree.enqueue(3)
        await note.options(delay=HOUR).enqueue("not due")
        report = await jobs.drain()
        assert (report.completed, report.discarded, report.total) == (14, 1, 15)
        assert sorted(ran, key=str) == [0] * 8 + [1] * 4 + [2] * 2 + [3]
        assert await jobs.counts() == {
            ("default", JobState.completed): 14,
            ("default", JobState.discarded): 1,
            ("default", JobState.scheduled): 1,
        }


async def test_6_telemetry_tells_of_each_step_in_order_after_it_is_stored(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    told: list[tuple[str, JobState]] = []

    async def listen(event: Event) -> None:
        job = getattr(event, "job", None)
        if job is not None:
            told.append((event.type, job.state))
            stored = (await jobs_store.get(job.id)).state
            assert stored is job.state or event.type == "job_enqueued", "told of before it was stored"

    telemetry = Telemetry()
    telemetry.attach(listen)
    async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock, telemetry=telemetry) as jobs:
        await stumble.options(max_attempts=2).enqueue(99)
        await jobs.drain(with_scheduled=True)
    assert told == [
        ("job_enqueued", JobState.available),
        ("job_started", JobState.executing),
        ("job_failed", JobState.retryable),
        ("job_started", JobState.executing),
        ("job_discarded", JobState.discarded),
    ]


async def test_7_periodic_three_nodes_enqueue_each_tick_once_and_an_overlap_not_at_all(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    async with jobs_store:
        nodes = [Supervisor(jobs_store, queues={}, clock=jobs_clock, max_stall=None) for _ in range(3)]
        for node in nodes:
            node.register_cron("sweep", "*/10 * * * *", "note", {"what": "tick"})
            node.register_cron("alone", "*/10 * * * *", "note", {"what": "alone"}, unique_key="alone")
        for node in nodes:
            await node.start()
        for count in (1, 2, 3):
            await tick(nodes, jobs_clock, count)
        for node in nodes:
            await node.stop()
        instants = [job.meta["cron_at"] for job in await enqueued(nodes[0], "sweep")]
        assert len(instants) == len(set(instants)) == 3
        assert len(await enqueued(nodes[0], "alone")) == 1


async def enqueued(node: Supervisor, entry: str) -> list[Job[object]]:
    return [job for job in await node.find() if job.meta["cron"] == entry]


async def tick(nodes: list[Supervisor], clock: TravelClock, count: int) -> None:
    """Let the next tick come, have every node look at the clock, and wait until all entries have fired it."""
    clock.advance((nodes[0].crons["sweep"].next_after(clock.now()) - clock.now()).total_seconds())
    for node in nodes:  # an entry that comes or goes makes a node look
        node.register_cron("look", "0 0 1 1 *", "note", {"what": "never"})
        node.unregister_cron("look")
    async with asyncio.timeout(GUARD):
        while len(await enqueued(nodes[0], "sweep")) < count or not await enqueued(nodes[0], "alone"):
            await asyncio.sleep(0.001)


async def test_8_pause_holds_a_queue_back_across_a_restart(jobs_store: Store, jobs_clock: TravelClock) -> None:
    async with jobs_store:
        async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock) as jobs:
            await jobs.pause_queue("default")
            await note.enqueue("held")
            await jobs.start()
            assert (await jobs.drain()).total == 0
        async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock) as jobs:
            await jobs.start()
            assert (await jobs.drain()).total == 0
            await jobs.resume_queue("default")
            assert (await jobs.drain()).completed == 1
    assert ran == ["held"]


async def test_9_graceful_stop_lets_a_short_job_end_and_hands_a_long_one_back(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    began = asyncio.Semaphore(0)

    @worker
    async def short() -> str:
        began.release()
        await asyncio.sleep(0.05)
        return "done"

    @worker
    async def endless() -> None:
        began.release()
        await asyncio.Event().wait()

    workers: list[WorkerDef] = [short, endless]
    async with jobs_store:
        async with Harness(jobs_store, workers=workers, clock=jobs_clock, shutdown_timeout=0.5) as jobs:
            ends, goes_on = await short.enqueue(), await endless.enqueue()
            await jobs.start()
            async with asyncio.timeout(GUARD):
                await began.acquire()
                await began.acquire()
                report = await jobs.stop()
        assert report.is_clean
        assert (await jobs_store.get(ends.id)).result == "done"
        handed_back = await jobs_store.get(goes_on.id)
        assert (handed_back.state, handed_back.attempt) == (JobState.available, 0)


async def test_10_rescue_what_a_dead_node_was_running_runs_again_elsewhere_once(
    jobs_store: Store, jobs_clock: TravelClock
) -> None:
    began = asyncio.Event()

    @worker
    async def fragile(times: int) -> int:
        ran.append(times)
        began.set()
        if len(ran) == 1:
            await asyncio.Event().wait()
        return len(ran)

    async with jobs_store:
        async with Harness(jobs_store, workers=[fragile], clock=jobs_clock) as dead:
            job = await fragile.enqueue(1)
            await dead.start()
            async with asyncio.timeout(GUARD):
                await began.wait()
            await dead.crash()
        async with Harness(jobs_store, workers=[fragile], clock=jobs_clock) as alive:
            assert (await alive.drain()).completed == 1
            ended = await alive.get(job)
    assert (ended.result, ended.attempt, ended.rescues) == (2, 2, 1)


async def test_cancelling_is_told_of(jobs_store: Store, jobs_clock: TravelClock) -> None:
    """Beside the ten: whoever waits for a job, or listens, learns of its cancellation at once."""
    telemetry = Telemetry()
    told: list[Event] = []
    telemetry.attach(told.append)
    async with Harness(jobs_store, workers=WORKERS, clock=jobs_clock, telemetry=telemetry) as jobs:
        job = await note.enqueue("never")
        waiter = asyncio.get_running_loop().create_task(jobs.wait(job))
        await jobs.cancel(job)
        async with asyncio.timeout(GUARD):
            assert (await waiter).state is JobState.cancelled
    assert any(isinstance(event, JobCancelled) for event in told)
