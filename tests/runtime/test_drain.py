"""Drain: everything that can start has run, nothing that cannot is waited for, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from random import Random
from typing import Any

import pytest

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    Draft,
    Job,
    JobCompleted,
    JobQuery,
    JobStarted,
    JobState,
    MemoryStore,
    NotBound,
    OptionError,
    Snooze,
    StoreBusy,
    StoreClosed,
    current_context,
    worker,
)
from jobs_async.core.store import Node
from jobs_async.runtime.drain import DrainReport
from jobs_async.testing.faults import Fault, FaultyStore
from jobs_async.testing.loop import run_virtual
from tests.runtime.support import GUARD, World, now, virtual

AT_ONCE = ConstantBackoff(0)
ENDLESS = 10**6


async def is_left_clean(world: World) -> bool:
    """No node lives, and nothing is taken to be running."""
    running = await world.store.select(JobQuery(states=[JobState.executing]))
    return not running and not any(node.alive for node in await world.store.nodes())


async def due(world: World) -> list[Job[Any]]:
    return await world.store.select(JobQuery(due=True))


async def idle(_args: object, _ctx: object) -> None:
    """A worker in the event loop: threads do not know that time flies."""


async def as_long_as_it_takes(task: asyncio.Task[Any]) -> None:
    """A guard around a wait for the end of a task, however that ended."""
    async with asyncio.timeout(GUARD):
        await asyncio.wait({task})


# --- what is run ---


@virtual
async def test_one_that_was_not_started_drains_again_and_again(world: World) -> None:
    jobs = world.supervisor()
    ran = []

    @jobs.worker
    async def work(n: int) -> None:
        ran.append(n)
        if n < 3:
            await work.enqueue(n + 10)

    for n in range(5):
        assert not jobs.is_running
        await work.enqueue(n)
        report = await jobs.drain()
        assert report == DrainReport(completed=2 if n < 3 else 1)
        assert report.total == report.completed
    assert sorted(ran) == [0, 1, 2, 3, 4, 10, 11, 12]
    assert await jobs.drain() == DrainReport()
    assert await is_left_clean(world)
    assert world.store.is_open


@virtual
async def test_one_that_runs_goes_on_as_before(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(10)

        await jobs.enqueue_many([work.draft() for _ in range(25)])
        assert await jobs.drain() == DrainReport(completed=25)
        assert now() == pytest.approx(30, abs=1), "ten at a time"
        assert jobs.is_running
        await jobs.wait(await work.enqueue())
        assert await jobs.drain() == DrainReport(), "what ran before this drain is not its own"


@virtual
async def test_row_17_a_retried_job_is_never_left(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker(max_attempts=5, retry_strategy=AT_ONCE)
    async def flaky(failures: int) -> None:
        if current_context().attempt <= failures:
            raise OSError

    await jobs.enqueue_many([flaky.draft(n) for n in range(6)])
    assert await jobs.drain() == DrainReport(completed=5, failed=0 + 1 + 2 + 3 + 4 + 4, discarded=1)
    assert await jobs.counts() == {("default", JobState.completed): 5, ("default", JobState.discarded): 1}


@virtual
async def test_row_17_a_retry_that_is_claimed_while_the_store_is_asked_is_not_left(world: World) -> None:
    slow_claims = FaultyStore(world.store, lambda _, primitive: Fault(after=1) if primitive == "fetch" else None)
    jobs = world.supervisor(slow_claims)

    @jobs.worker(max_attempts=3, retry_strategy=AT_ONCE)
    async def flaky() -> None:
        if current_context().attempt < 3:
            raise OSError

    await flaky.enqueue()
    assert await jobs.drain() == DrainReport(completed=1, failed=2)


@virtual
async def test_row_17_what_another_process_brings_meanwhile_is_run_too(world: World) -> None:
    jobs, other = world.supervisor(poll_interval=ENDLESS), world.supervisor(queues={})
    jobs.register_worker("work", idle)
    brought = 0

    async def bring(event: object) -> None:
        nonlocal brought
        if isinstance(event, JobCompleted) and brought < 3:
            brought += 1
            await other.enqueue("work")

    assert jobs.telemetry is not None
    jobs.telemetry.attach(bring)
    await jobs.enqueue("work")
    assert await jobs.drain() == DrainReport(completed=4)
    assert now() < 1, "it was not left to the next poll"


@virtual
async def test_generations_of_children_in_several_queues(world: World) -> None:
    jobs = world.supervisor(queues={"a": 1, "b": 2, "c": 3})

    @jobs.worker(queue="a")
    async def parent(depth: int) -> None:
        await asyncio.sleep(depth)
        if depth:
            for queue in "abc":
                await parent.options(queue=queue).enqueue(depth - 1)

    await parent.enqueue(4)
    assert await jobs.drain() == DrainReport(completed=1 + 3 + 9 + 27 + 81)


@virtual
async def test_the_report_counts_how_runs_ended(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker(max_attempts=2)
    async def work(manner: str) -> None:
        ends = {"fail": OSError(), "discard": Discard("no"), "cancel": Cancel("no"), "snooze": Snooze(60)}
        if manner in ends:
            raise ends[manner]

    for manner in ("complete", "complete", "fail", "discard", "cancel", "snooze"):
        await work.enqueue(manner)
    await jobs.cancel(await work.options(delay=5).enqueue("never ran"))
    report = await jobs.drain()
    assert report == DrainReport(completed=2, failed=1, discarded=1, cancelled=1, snoozed=1)
    assert report.total == 6


# --- what is not waited for ---


@pytest.mark.parametrize("with_scheduled", [False, True])
def test_a_paused_queue_is_left_alone(with_scheduled: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={"default": 1, "side": 1})

        @jobs.worker
        async def work(pause: str = "") -> None:
            if pause:
                await jobs.pause_queue(pause)

        await jobs.pause_queue("side")
        held = [await work.options(queue="side").enqueue(), await work.options(queue="side", delay=60).enqueue()]
        await work.enqueue("default")
        held.append(await work.enqueue())
        assert await jobs.drain(with_scheduled=with_scheduled) == DrainReport(completed=1)
        states = [(await jobs.get(job)).state for job in held]
        assert states == [job.state for job in held], "not even brought forward"
        for queue in ("default", "side"):
            await jobs.resume_queue(queue)
        assert (await jobs.drain(with_scheduled=True)).completed == 3

    scenario()


@virtual
async def test_what_is_scheduled_waits_for_its_time(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None: ...

    later = await work.options(delay=60).enqueue()
    assert await jobs.drain() == DrainReport()
    assert (await jobs.get(later)).state is JobState.scheduled
    await asyncio.sleep(60)
    assert await jobs.drain() == DrainReport(completed=1)


@virtual
async def test_with_scheduled_each_attempt_is_brought_forward_once(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker(max_attempts=4, retry_strategy=ConstantBackoff(3600))
    async def work(manner: str) -> None:
        if manner == "fail":
            raise OSError
        if manner == "snooze":
            raise Snooze(3600)
        if manner == "parent":
            await work.options(delay=3600).enqueue("child")

    for manner in ("fail", "snooze", "parent"):
        await work.options(delay=3600).enqueue(manner)
    report = await jobs.drain(with_scheduled=True)
    assert report == DrainReport(completed=2, failed=3, discarded=1, snoozed=1)
    assert now() < 60
    (sleeper,) = await world.store.select(JobQuery(states=[JobState.scheduled]))
    assert sleeper.args == {"manner": "snooze"}
    assert await jobs.drain(with_scheduled=True) == DrainReport(snoozed=1), "a drain of its own"


@virtual
async def test_thousands_of_scheduled_jobs_are_brought_forward_page_by_page(world: World) -> None:
    jobs = world.supervisor(queues={"default": 100})

    @jobs.worker
    async def work() -> None: ...

    await jobs.enqueue_many([work.options(delay=3600).draft() for _ in range(2500)])
    assert await jobs.drain(with_scheduled=True) == DrainReport(completed=2500)


class Asked(MemoryStore):
    """A store that counts how often it is asked what is due, for that may take reading all that waits."""

    questions = 0

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        self.questions += query.due
        return await super().select(query)


@virtual
async def test_while_jobs_run_the_store_is_not_asked_what_else_is_due(world: World) -> None:
    store = Asked(clock=world.clock)
    jobs = world.supervisor(store, queues={"default": 1})
    jobs.register_worker("work", idle)
    await jobs.enqueue_many([Draft[Any]("work", None) for _ in range(300)])
    assert await jobs.drain() == DrainReport(completed=300)
    assert 1 <= store.questions <= 3


@virtual
async def test_jobs_of_other_nodes_are_not_waited_for(world: World) -> None:
    jobs = world.supervisor(queues={"default": 1})
    jobs.register_worker("work", idle)
    for node in ("dead", "alive"):
        await jobs.enqueue("work")
        await world.store.beat(Node(id=node), 1 if node == "dead" else ENDLESS, join=True)
        assert (await world.store.fetch("default", 10, node=node)).jobs
    await asyncio.sleep(2)
    await jobs.enqueue("work")
    report = await jobs.drain()
    assert report.completed in (1, 2), "what the first search for lost jobs frees may be run as well"
    assert now() < 10


@virtual
async def test_what_another_node_can_run_is_handed_back_and_not_waited_for(world: World) -> None:
    async with world.supervisor(queues={"elsewhere": 1}) as other:
        other.register_worker("strange", idle)
        await asyncio.sleep(10)  # its next beat says so
        jobs = world.supervisor()
        strange = await jobs.enqueue("strange")
        await jobs.drain()
        assert now() < 15
        assert ((await jobs.get(strange)).state, (await jobs.get(strange)).attempt) == (JobState.scheduled, 0)
        await jobs.drain(with_scheduled=True)
        assert now() < 15, "once an attempt"


@virtual
async def test_no_tick_is_fired(world: World) -> None:
    jobs = world.supervisor()

    @jobs.cron("* * * * *")
    async def tick() -> None: ...

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(200)

    await work.enqueue()
    assert await jobs.drain() == DrainReport(completed=1)
    assert len(await jobs.find()) == 1


@virtual
async def test_without_queues_there_is_nothing_to_drain(world: World) -> None:
    with pytest.raises(OptionError, match="without queues"):
        await world.supervisor(queues={}).drain()
    with pytest.raises(OptionError, match="timeout"):
        await world.supervisor().drain(timeout=-1)


# --- its end before the end ---


@virtual
async def test_a_timeout_hands_back_what_runs_as_a_stop_does(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=3, queues={"default": 2})

    @jobs.worker
    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)

    long, short, third = [await work.enqueue(seconds) for seconds in (ENDLESS, 11, 1)]
    with pytest.raises(TimeoutError):
        await jobs.drain(timeout=10)
    assert now() == pytest.approx(13, abs=0.5), "the grace of a stop"
    assert [(await jobs.get(job)).state.name for job in (long, short, third)] == ["available", "completed", "available"]
    assert (await jobs.get(long)).attempt == 0
    assert await is_left_clean(world)
    assert not jobs.is_running
    await jobs.cancel(long)
    assert await jobs.drain() == DrainReport(completed=1)


@virtual
async def test_a_timeout_of_one_that_runs_stops_nothing(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(100)

        job = await work.enqueue()
        with pytest.raises(TimeoutError):
            await jobs.drain(timeout=10)
        assert jobs.is_running
        await jobs.wait(job)


@virtual
async def test_a_timeout_holds_while_another_drain_has_its_turn(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(100)

    await work.enqueue()
    patient = asyncio.get_running_loop().create_task(jobs.drain())
    await world.seen.wait(JobStarted)
    with pytest.raises(TimeoutError):
        await jobs.drain(timeout=10)
    assert now() == pytest.approx(10)
    assert await patient == DrainReport(completed=1)


@virtual
async def test_a_stop_that_meets_a_drain_is_a_stop(world: World) -> None:
    @worker
    async def work() -> None:
        await asyncio.sleep(ENDLESS)

    jobs = world.supervisor(workers=[work], shutdown_timeout=1)
    await work.enqueue()
    draining = asyncio.get_running_loop().create_task(jobs.drain())
    await world.seen.wait(JobStarted)
    await jobs.stop()
    await as_long_as_it_takes(draining)
    assert isinstance(draining.exception(), StoreClosed)
    assert jobs.is_stopped
    with pytest.raises(NotBound, match="is attached to no Supervisor"):
        await work.enqueue()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("manner", ["obedient", "deaf"])
def test_a_stop_ends_a_drain_within_the_time_of_a_stop(started: bool, manner: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs, enough = world.supervisor(shutdown_timeout=2), asyncio.Event()

        @jobs.worker
        async def work() -> None:
            while not enough.is_set():
                with contextlib.suppress(*([asyncio.CancelledError] if manner == "deaf" else [])):
                    await enough.wait()

        if started:
            await jobs.start()
        await work.enqueue()
        draining = asyncio.get_running_loop().create_task(jobs.drain())
        await world.seen.wait(JobStarted)
        async with asyncio.timeout(2 + 6):
            report = await jobs.stop()
            await asyncio.wait({draining})
        assert report.is_clean is (manner == "obedient")
        with pytest.raises(StoreClosed, match="stopped before"):
            draining.result()
        assert not jobs.is_running
        enough.set()

    scenario()


@pytest.mark.parametrize("started", [False, True])
def test_a_stop_ends_a_drain_that_stands_before_a_store_that_does_not_answer(started: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = FaultyStore(world.store)
        jobs = world.supervisor(store, shutdown_timeout=2)
        if started:
            await jobs.start()
        store.plan = lambda _, primitive: Fault(hangs=True) if primitive in ("queues", "select") else None
        draining = asyncio.get_running_loop().create_task(jobs.drain())
        await asyncio.sleep(1)
        async with asyncio.timeout(2 + 6):
            await jobs.stop()
            await asyncio.wait({draining})
        assert isinstance(draining.exception(), StoreClosed)

    scenario()


def test_row_17_cancelled_in_any_turn_it_leaves_nothing_running_and_nothing_lost() -> None:
    async def drain(turns: int) -> bool:
        """Cancel a drain after so many turns of the loop; whether it had ended before."""
        world = World()
        jobs = world.supervisor(shutdown_timeout=0)

        @jobs.worker(max_attempts=3, retry_strategy=AT_ONCE)
        async def work(n: int) -> None:
            for _ in range(n):
                await asyncio.sleep(0)
            if current_context().attempt == 1:
                raise OSError

        await jobs.enqueue_many([work.draft(n) for n in range(4)])
        draining = asyncio.get_running_loop().create_task(jobs.drain())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_cancelled = draining.cancel()
        await as_long_as_it_takes(draining)
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, f"after {turns} turns"
        assert await is_left_clean(world), f"after {turns} turns"
        assert not jobs.is_running
        await jobs.drain()
        assert await jobs.counts() == {("default", JobState.completed): 4}, f"after {turns} turns"
        return not was_cancelled

    turns = 0
    while not run_virtual(drain(turns)):
        turns += 1
    assert turns > 20, "it took part in something"


# --- company ---


@virtual
async def test_a_start_waits_for_the_end_of_a_drain(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(10)

    await work.enqueue()
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(jobs.drain())
        await world.seen.wait(JobStarted)
        await jobs.start()
        assert draining.done()
    assert draining.result() == DrainReport(completed=1)
    assert jobs.is_running
    await jobs.wait(await work.enqueue())
    assert await jobs.stop()


@virtual
async def test_a_drain_that_meets_a_start_uses_what_was_started(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None: ...

    await work.enqueue()
    async with asyncio.TaskGroup() as group:
        group.create_task(jobs.start())
        draining = group.create_task(jobs.drain())
    assert draining.result() == DrainReport(completed=1)
    assert jobs.is_running
    assert len([node for node in await world.store.nodes() if node.alive]) == 1
    await jobs.stop()
    assert await is_left_clean(world)


@pytest.mark.parametrize("started", [False, True])
def test_two_drains_at_once_both_come_to_their_end(started: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor()

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(10)

        if started:
            await jobs.start()
        await work.enqueue()
        later = await work.options(delay=3600).enqueue()
        async with asyncio.TaskGroup() as group:
            one = group.create_task(jobs.drain())
            await world.seen.wait(JobStarted)
            two = group.create_task(jobs.drain(with_scheduled=True))
        assert one.result().completed >= 1
        assert two.result().completed >= 1
        assert (await jobs.get(later)).state is JobState.completed
        await jobs.stop()
        assert await is_left_clean(world)

    scenario()


@virtual
async def test_the_end_of_one_drain_ends_no_other(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=1)

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(10)

    await work.enqueue()
    async with asyncio.TaskGroup() as group:
        impatient = group.create_task(jobs.drain())
        await world.seen.wait(JobStarted)
        patient = group.create_task(jobs.drain())
        await asyncio.sleep(1)
        impatient.cancel()
    assert patient.result() == DrainReport(completed=1)


@virtual
async def test_a_stop_calls_off_a_drain_that_still_waits_for_its_turn(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=1)

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(100)

    await work.enqueue()
    draining = [asyncio.get_running_loop().create_task(jobs.drain()) for _ in range(2)]
    await world.seen.wait(JobStarted)
    async with asyncio.timeout(1 + 6):
        await jobs.stop()
        await asyncio.wait(draining)
    assert [type(one.exception()) for one in draining] == [StoreClosed] * 2
    assert len(world.seen.of(JobStarted)) == 1


@virtual
async def test_after_a_stop_handlers_enqueue_children_in_a_drain_too(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work(depth: int) -> None:
        if depth:
            await work.enqueue(depth - 1)

    async with jobs:
        pass
    await work.on(jobs).enqueue(2)
    assert await jobs.drain() == DrainReport(completed=3)


# --- what goes wrong on the way ---


class Broken(MemoryStore):
    """A store with a mistake in it."""

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        if query.due:
            raise AttributeError("no such column")
        return await super().select(query)


@virtual
async def test_a_store_with_a_mistake_in_it_is_not_taken_for_one_that_is_away(world: World) -> None:
    jobs = world.supervisor(Broken(clock=world.clock))
    with pytest.raises(AttributeError, match="no such column"):
        await jobs.drain(timeout=100)
    assert not jobs.is_running


@pytest.mark.parametrize("primitives", [("fetch",), ("apply",), ("select", "queues"), ("fetch", "apply", "select")])
def test_an_outage_in_the_middle_is_survived(primitives: tuple[str, ...]) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = FaultyStore(world.store)
        jobs = world.supervisor(store)

        @jobs.worker(max_attempts=2, retry_strategy=AT_ONCE)
        async def work(n: int) -> None:
            if not n:
                store.plan = lambda _, primitive: Fault(error=StoreBusy("away")) if primitive in primitives else None
                asyncio.get_running_loop().call_later(20, store.calm)
            if n == 3 and current_context().attempt == 1:
                raise OSError

        await jobs.enqueue_many([work.draft(n) for n in range(20)])
        assert await jobs.drain() == DrainReport(completed=20, failed=1)
        assert now() >= 20
        assert await is_left_clean(world)

    scenario()


@virtual
async def test_a_lease_that_is_lost_in_the_middle_repeats_what_ran_and_leaves_nothing(world: World) -> None:
    store = FaultyStore(world.store)
    jobs = world.supervisor(store)

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(60)

    job = await work.enqueue()
    draining = asyncio.get_running_loop().create_task(jobs.drain())
    await world.seen.wait(JobStarted)
    store.plan = lambda _, primitive: Fault(error=StoreBusy("away")) if primitive == "beat" else None
    await asyncio.sleep(40)
    store.calm()
    report = await draining
    ended = await jobs.get(job)
    assert ended.state is JobState.completed or ended.state is JobState.available
    assert report.completed == (ended.state is JobState.completed)
    assert not await due(world)
    assert await is_left_clean(world)


# --- all of it together ---


@pytest.mark.parametrize("started", [False, True])
def test_row_17_in_any_order_of_events_nothing_is_left_and_the_report_is_the_ledger(started: bool) -> None:
    for seed in range(60):
        run_virtual(_shuffled(seed, started), seed)


async def _shuffled(seed: int, started: bool) -> None:
    """Jobs that end in every manner and bring more, drained in an order drawn by lot."""
    world, rng = World(), Random(seed)
    jobs = world.supervisor(queues={"default": 3, "side": 1}, rng=Random(seed))

    @jobs.worker(max_attempts=3, retry_strategy=AT_ONCE)
    async def work(depth: int) -> None:
        await asyncio.sleep(rng.choice([0, 0, 0.001, 1]))
        for _ in range(rng.choice([0, 0, 1, 2]) if depth else 0):
            await work.options(queue=rng.choice(["default", "side"])).enqueue(depth - 1)
        ends = [None, None, OSError(), OSError(), Discard("no"), Cancel("no"), Snooze(0), Snooze(0.001)]
        if (end := rng.choice(ends)) is not None:
            raise end

    if started:
        await jobs.start()
    await jobs.enqueue_many([work.draft(3) for _ in range(6)])
    total: Counter[str] = Counter()
    while await due(world):
        report = await jobs.drain()
        assert not await due(world), f"seed {seed}"
        assert not await world.store.select(JobQuery(states=[JobState.executing])), f"seed {seed}"
        total += Counter({name: getattr(report, name) for name in report.__struct_fields__})
        await asyncio.sleep(1)
    told = _ledger(world)
    assert total <= told if started else total == told, f"seed {seed}"  # one that runs does so between drains, too
    await jobs.stop()


def _ledger(world: World) -> Counter[str]:
    """How runs ended, as telemetry told of them."""
    told = Counter(world.seen.types())
    names = ("completed", "failed", "discarded", "cancelled", "snoozed")
    return Counter({name: told[f"job_{name}"] for name in names if told[f"job_{name}"]})


@virtual
async def test_what_is_handed_back_to_another_node_counts_as_nothing(world: World) -> None:
    async with world.supervisor(queues={"elsewhere": 1}) as other:
        other.register_worker("strange", idle)
        await asyncio.sleep(10)
        jobs = world.supervisor()
        await jobs.enqueue("strange")
        assert await jobs.drain() == DrainReport()


@virtual
async def test_a_job_cannot_drain_the_supervisor_that_runs_it(world: World) -> None:
    jobs = world.supervisor()

    @jobs.worker(max_attempts=1)
    async def ouroboros() -> None:
        await jobs.drain()

    for start in (jobs.drain, jobs.start):
        job = await ouroboros.enqueue()
        await start()
        error = (await jobs.wait(job)).last_error
        assert error is not None
        assert error.type == "OptionError"
    await jobs.stop()
