"""However a stop begins, whatever it meets and whoever cuts in: it is bounded, tells the truth, and leaves nothing."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import combinations_with_replacement
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from jobs_async import (
    Event,
    Job,
    JobCompleted,
    JobContext,
    JobInterrupted,
    JobQuery,
    JobStarted,
    JobState,
    MemoryStore,
    ShutdownReport,
    SqliteStore,
    StoreBusy,
    StoreClosed,
    StoreTimeout,
    Supervisor,
    current_context,
)
from jobs_async.core.store import Beat, Fetched, Node
from jobs_async.runtime import engine
from jobs_async.tasks import to_the_end
from jobs_async.testing.loop import LoopClock, run_virtual
from tests.runtime.support import World, now, virtual
from tests.sqlite.support import Holder, ask, can_be_written_at_once, open_files, threads, until

GRACE = 10.0
BOUND = GRACE + 6
FOR_EVER = 10_000.0


async def deaf(enough: asyncio.Event) -> None:
    """Go on until it is enough, whoever cancels."""
    while not enough.is_set():
        with suppress(asyncio.CancelledError):
            await enough.wait()


class Load:
    """One job of each kind in a queue that is full with them, and one that waits."""

    def __init__(self, world: World, jobs: Supervisor) -> None:
        self.world, self.jobs = world, jobs
        self.told: list[float] = []
        jobs.register_worker("ends in time", self._ends_in_time)
        jobs.register_worker("takes too long", self._takes_too_long)

    @staticmethod
    async def _ends_in_time(_args: object, _ctx: JobContext) -> str:
        await asyncio.sleep(GRACE / 2)
        return "done"

    async def _takes_too_long(self, _args: object, ctx: JobContext) -> None:
        try:
            await asyncio.sleep(FOR_EVER)
        finally:
            assert ctx.cancelled.is_set()
            self.told.append(now())
            await asyncio.sleep(2)

    async def begin(self) -> None:
        """Come back when the queue is full."""
        names = ["ends in time", "takes too long", "takes too long", "takes too long"]
        self.stored = [await self.jobs.enqueue(name, timeout_seconds=None) for name in names]
        await self.world.seen.wait(JobStarted, count=3)
        self.began = now()

    async def assert_stopped_well(self) -> None:
        """The first was given its grace, the next two were cut and handed back, the last was never touched."""
        assert self.jobs.is_stopped
        assert not self.jobs.is_running
        rows = [await self.world.store.get(job.id) for job in self.stored]
        assert [(row.state, row.attempt, row.result) for row in rows] == [
            (JobState.completed, 1, "done"),
            *[(JobState.available, 0, None)] * 3,
        ]
        assert [row.claim for row in rows] == [1, 1, 1, 0]
        assert self.told == [pytest.approx(self.began + GRACE)] * 2, "each was cut once"
        assert len(self.world.seen.of(JobInterrupted)) == 2
        assert now() - self.began <= BOUND
        assert not any(node.alive for node in await self.world.store.nodes())


# --- how it begins ---


async def by_a_call(jobs: Supervisor, load: Load) -> None:
    await jobs.start()
    await load.begin()
    assert (await jobs.stop()) == ShutdownReport()


async def by_leaving(jobs: Supervisor, load: Load) -> None:
    async with jobs:
        await load.begin()


async def by_an_error(jobs: Supervisor, load: Load) -> None:
    with pytest.raises(ZeroDivisionError):
        async with jobs:
            await load.begin()
            raise ZeroDivisionError


async def by_a_timeout(jobs: Supervisor, load: Load) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, jobs:
            await load.begin()
            limit.reschedule(now())
            await asyncio.sleep(FOR_EVER)


async def by_a_failing_sibling(jobs: Supervisor, load: Load) -> None:
    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.TaskGroup() as group:
            group.create_task(jobs.run())
            while not jobs.is_running:
                await asyncio.sleep(0)
            await load.begin()
            group.create_task(fail())
    assert [type(error) for error in failed.value.exceptions] == [ZeroDivisionError]


async def fail() -> None:
    raise ZeroDivisionError


async def by_cancelling_the_task_around(jobs: Supervisor, load: Load) -> None:
    async def host() -> None:
        async with jobs:
            await load.begin()
            begun.set()
            await asyncio.sleep(FOR_EVER)

    begun = asyncio.Event()
    task = asyncio.get_running_loop().create_task(host())
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def by_the_end_of_an_app(jobs: Supervisor, load: Load) -> None:
    async with jobs.lifespan(object()):
        await load.begin()


BEGINNINGS = [
    by_a_call,
    by_leaving,
    by_an_error,
    by_a_timeout,
    by_a_failing_sibling,
    by_cancelling_the_task_around,
    by_the_end_of_an_app,
]


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_however_a_stop_begins_it_is_the_same_stop(begin: Callable[[Supervisor, Load], Awaitable[None]]) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={"default": 3}, shutdown_timeout=GRACE)
        load = Load(world, jobs)
        await begin(jobs, load)
        await load.assert_stopped_well()

    scenario()


class Turns(selectors.DefaultSelector):
    """Counts how often the event loop comes round."""

    count = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.count += 1
        return super().select(timeout)


@pytest.mark.parametrize("how", ["scope", "move_on_after", "group"])
def test_row_60_a_scope_that_cancels_again_and_again_neither_spins_nor_reaches_a_handler(how: str) -> None:
    """anyio repeats a cancellation with every turn of the loop: who only swallows it, burns a processor meanwhile."""
    turns = Turns()
    interruptions: list[str] = []

    async def host(jobs: Supervisor, begun: asyncio.Event) -> int:
        if how == "group":
            async with anyio.create_task_group() as group:
                group.start_soon(jobs.run)
                await begun.wait()
                before = turns.count
                group.cancel_scope.cancel()
            return before
        with anyio.CancelScope() if how == "scope" else anyio.move_on_after(FOR_EVER) as scope:
            async with jobs:
                await begun.wait()
                before = turns.count
                scope.cancel()
                await asyncio.sleep(FOR_EVER)
        assert scope.cancelled_caught
        return before

    async def main() -> None:
        world = World()
        jobs = world.supervisor(shutdown_timeout=0.1)
        begun = asyncio.Event()

        @jobs.worker
        async def work() -> None:
            try:
                begun.set()
                await asyncio.sleep(FOR_EVER)
            except asyncio.CancelledError:
                interruptions.append("cut")
                await asyncio.sleep(0.1)  # which a second cancellation would hit
                interruptions.append("cleaned up")
                raise

        job = await work.on(jobs).enqueue()
        before = await host(jobs, begun)
        took = turns.count - before
        me = asyncio.current_task()
        assert me is not None
        assert me.cancelling() == 0, "the cancellation has not leaked out of its scope"
        await asyncio.sleep(0)
        row = await world.store.get(job.id)
        assert (row.state, row.attempt) == (JobState.available, 0)
        assert interruptions == ["cut", "cleaned up"]
        assert took < 500, f"the loop went round {took} times"

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
        runner.run(main())


# --- what it meets ---


DOORS = ["open", "join", "fetch", "apply", "beat", "leave", "close"]


class Doors(MemoryStore):
    """A store whose every door can be slow, or shut for ever, and says who stands before it."""

    def __init__(self, world: World, **seconds: float) -> None:
        super().__init__(clock=world.clock)
        world.store = self
        self.seconds = seconds
        self.shut: set[str] = set()
        self.thaw = asyncio.Event()
        self.visits: list[str] = []
        self.up = False
        self._news = asyncio.Condition()

    async def visited(self, door: str, times: int = 1) -> None:
        async with asyncio.timeout(FOR_EVER), self._news:
            await self._news.wait_for(lambda: self.visits.count(door) >= times)

    async def _pass(self, door: str) -> None:
        self.visits.append(door)
        async with self._news:
            self._news.notify_all()
        if door in self.shut:
            await self.thaw.wait()
        await asyncio.sleep(self.seconds.get(door, 0))

    @property
    def is_open(self) -> bool:
        return self.up

    async def open(self) -> None:
        await self._pass("open")
        self.up = True

    async def close(self) -> None:
        await self._pass("close")
        self.up = False

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        """It is on its way back that this door takes time: the jobs are claimed by then."""
        fetched = await super().fetch(queue, limit, node=node)
        if fetched.jobs:
            await self._pass("fetch")
        return fetched

    async def apply(self, steps: Any) -> Any:
        await self._pass("apply")
        return await super().apply(steps)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        await self._pass("join" if join else "beat" if ttl else "leave")
        return await super().beat(node, ttl, join=join)


async def during_the_grace(load: Load, store: Doors) -> None:
    await asyncio.sleep(1)


async def while_handlers_clean_up(load: Load, store: Doors) -> None:
    while not load.told:
        await asyncio.sleep(0.1)


async def while_they_are_handed_back(load: Load, store: Doors) -> None:
    await store.visited("apply", 2)


async def while_the_node_leaves(load: Load, store: Doors) -> None:
    await store.visited("leave")


async def while_the_store_closes(load: Load, store: Doors) -> None:
    await store.visited("close")


PHASES = [
    during_the_grace,
    while_handlers_clean_up,
    while_they_are_handed_back,
    while_the_node_leaves,
    while_the_store_closes,
]


SPREAD = [phases for count in (1, 2, 3) for phases in combinations_with_replacement(PHASES, count)]


@pytest.mark.parametrize("phases", SPREAD, ids=lambda phases: ", ".join(phase.__name__ for phase in phases))
def test_no_cancellation_of_the_host_pierces_a_stop(
    phases: tuple[Callable[[Load, Doors], Awaitable[None]], ...],
) -> None:
    """One more begins it."""

    @virtual
    async def scenario(world: World) -> None:
        store = Doors(world, apply=0.3, leave=0.3, close=0.3)
        jobs = world.supervisor(store, queues={"default": 3}, shutdown_timeout=GRACE)
        load = Load(world, jobs)
        host = asyncio.get_running_loop().create_task(jobs.run())
        await load.begin()
        host.cancel()
        for phase in phases:
            await phase(load, store)
            assert not host.done()
            host.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({host})
        assert host.cancelled()
        assert store.visits.count("close") == 1
        assert not store.is_open
        await load.assert_stopped_well()

    scenario()


SHUT: dict[str, tuple[str, ...]] = {
    "claims": ("fetch",),
    "settlements": ("apply",),
    "heartbeats": ("beat",),
    "the farewell": ("leave",),
    "the close": ("close",),
    "everything": ("fetch", "apply", "beat", "leave", "close"),
}


async def finish(store: Doors) -> None:
    """Let everybody through who still stands before a door."""
    store.thaw.set()
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("grace", [0.0, 1.0, GRACE])
@pytest.mark.parametrize("listens", [True, False], ids=["", "with a handler that will not end"])
@pytest.mark.parametrize("what", SHUT)
def test_a_store_that_answers_no_more_holds_up_no_stop_and_the_report_says_what_it_kept(
    what: str, listens: bool, grace: float
) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = Doors(world)
        jobs = world.supervisor(store, queues={"default": 2, "other": 1}, shutdown_timeout=grace)
        stopping, enough = asyncio.Event(), asyncio.Event()

        async def ends(_args: object, _ctx: JobContext) -> None:
            await stopping.wait()

        async def will_not_end(_args: object, _ctx: JobContext) -> None:
            await deaf(enough)

        jobs.register_worker("ends", ends)
        jobs.register_worker("other", ends if listens else will_not_end)
        await jobs.start()
        one, other = [await jobs.enqueue(name, timeout_seconds=None) for name in ("ends", "other")]
        await world.seen.wait(JobStarted, count=2)
        store.shut = set(SHUT[what])
        unseen = await jobs.enqueue("ends", queue="other", timeout_seconds=None)
        await asyncio.sleep(6)  # a heartbeat and a claim have come to a door by then
        stopping.set()
        began = now()
        report = await jobs.stop()
        assert now() - began <= grace + 6
        assert not jobs.is_running
        executing = {row.id for row in await store.select(JobQuery(states=[JobState.executing]))}
        kept = executing - {unseen.id} if "fetch" in store.shut else executing
        assert {*report.still_running, *report.unsettled} == kept
        assert report.still_running == (() if listens else (other.id,))
        assert (one.id in report.unsettled) is ("apply" in store.shut)
        enough.set()
        await finish(store)

    scenario()


class Stubborn(Doors):
    """As the SQLite store: an opening goes on to its end even where it is cancelled, and is then undone."""

    async def open(self) -> None:
        try:
            await to_the_end(super().open())
        except asyncio.CancelledError:
            await self.close()
            raise


@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize("kind", [Doors, Stubborn])
@pytest.mark.parametrize("door", ["open", "join"])
def test_a_stop_is_bounded_while_a_start_stands_before_a_shut_door_and_nothing_starts_when_it_opens(
    door: str, kind: type[Doors], starts: int
) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = kind(world)
        store.shut = {door}
        jobs = world.supervisor(store, shutdown_timeout=1)
        starting = [asyncio.get_running_loop().create_task(jobs.start()) for _ in range(starts)]
        await store.visited(door)
        stopping = asyncio.get_running_loop().create_task(jobs.stop())
        await asyncio.wait({stopping}, timeout=1 + 6)
        in_time = stopping.done()
        await finish(store)
        errors = await asyncio.gather(*starting, return_exceptions=True)
        await asyncio.wait({stopping})
        await finish(store)
        assert in_time
        assert {type(error) for error in errors} <= {StoreClosed, StoreTimeout}
        assert stopping.result().is_clean
        assert not jobs.is_running
        assert not store.is_open

    scenario()


# --- starts and stops at once ---


@pytest.mark.parametrize("door", ["open", "join"])
def test_row_61_a_stop_during_a_slow_start_is_not_forgotten(door: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = Doors(world, **{door: 2.0})
        jobs = world.supervisor(store, shutdown_timeout=GRACE)
        starting = asyncio.get_running_loop().create_task(jobs.start())
        await store.visited(door)
        reports = await asyncio.gather(*(jobs.stop() for _ in range(3)))
        await asyncio.wait({starting})
        assert all(report.is_clean for report in reports)
        assert not jobs.is_running
        assert not store.is_open
        assert now() <= 2 + 6

    scenario()


@pytest.mark.parametrize("door", ["open", "join"])
def test_a_start_that_is_cancelled_has_started_nothing_and_can_be_repeated(door: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = Doors(world, **{door: 2.0})
        jobs = world.supervisor(store)
        starting = asyncio.get_running_loop().create_task(jobs.start())
        await store.visited(door)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()
        assert not jobs.is_running
        assert not store.is_open
        async with jobs:
            assert jobs.is_running
        assert not store.is_open

    scenario()


@virtual
async def test_a_start_that_fails_fails_the_group_it_runs_in_and_leaves_nothing(world: World) -> None:
    class Away(Doors):
        async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
            raise StoreBusy("away")

    store = Away(world)
    jobs = world.supervisor(store)
    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.TaskGroup() as group:
            group.create_task(jobs.run())
    assert [type(error) for error in failed.value.exceptions] == [StoreBusy]
    assert not jobs.is_running
    assert not store.is_open


@virtual
async def test_a_start_during_a_stop_waits_for_its_end_and_then_starts_anew(world: World) -> None:
    store = Doors(world)
    jobs = world.supervisor(store, queues={"default": 3}, shutdown_timeout=GRACE)
    load = Load(world, jobs)
    await jobs.start()
    await load.begin()
    stopping = asyncio.get_running_loop().create_task(jobs.stop())
    await asyncio.sleep(1)
    await jobs.start()
    assert stopping.done()
    assert stopping.result().is_clean
    assert jobs.is_running
    assert store.visits.count("open") == store.visits.count("join") == 2
    await world.seen.wait(JobStarted, count=3 + 3)
    assert (await jobs.stop()).is_clean


@pytest.mark.parametrize("seed", range(20))
def test_f15_starts_stops_and_cancellations_in_any_order_lose_no_job_and_leave_nothing(seed: int) -> None:
    @virtual
    async def scenario(world: World) -> None:
        rng = Random(seed)
        store = Doors(world, **{door: rng.choice([0, 0.01, 0.3]) for door in DOORS})
        jobs = world.supervisor(store, queues={"default": 2}, shutdown_timeout=GRACE, rng=rng)
        runs: list[int] = []

        @jobs.worker
        async def work(n: int) -> int:
            await asyncio.sleep(rng.random())
            runs.append(n)
            return n

        async def bounded_stop() -> None:
            began = now()
            assert (await jobs.stop()).is_clean
            assert now() - began <= BOUND

        async def enqueue() -> None:
            n = len(stored)
            stored.append(n)
            await work.on(jobs).enqueue(n)

        stored: list[int] = []
        calls: list[Callable[[], Any]] = [jobs.start, jobs.start, bounded_stop, jobs.run, enqueue, enqueue]
        pending: list[asyncio.Task[Any]] = []
        for _ in range(60):
            call = rng.choice(calls)
            pending.append(asyncio.get_running_loop().create_task(call()))
            if call != enqueue and rng.random() < 0.3:
                await asyncio.sleep(rng.choice([0, 0.01, 0.2]))
                pending[-1].cancel()
            await asyncio.sleep(rng.choice([0, 0, 0.01, rng.random()]))
        while not all(task.done() for task in pending):  # a start that waited for a stop comes after it
            await bounded_stop()
        ended = await asyncio.gather(*pending, return_exceptions=True)
        errors = {type(error) for error in ended if isinstance(error, BaseException)}
        assert errors <= {asyncio.CancelledError, StoreClosed}, "a start may have been called off by a stop"
        await bounded_stop()
        assert not store.is_open
        async with jobs:
            async with asyncio.timeout(100):
                while {state for _, state in await jobs.counts()} != {JobState.completed}:
                    await asyncio.sleep(1)
        assert sorted(runs) == sorted(stored), "each ran, and once"
        assert not any(node.alive for node in await store.nodes())

    scenario()


# --- jobs that had not begun ---


@virtual
async def test_row_4_what_was_claimed_and_not_begun_is_handed_back_untouched(world: World) -> None:
    """Telling of a claim takes its time here, and the stop comes meanwhile."""
    jobs = world.supervisor(queues={"default": 3})
    ran: list[int] = []

    async def tells_slowly(event: Event) -> None:
        if isinstance(event, JobStarted):
            await asyncio.sleep(2)

    @jobs.worker
    async def work() -> None:
        ran.append(1)

    assert jobs.telemetry is not None
    jobs.telemetry.attach(tells_slowly)
    await jobs.start()
    stored = await jobs.enqueue_many([work.draft() for _ in range(5)])
    await world.seen.wait(JobStarted)
    assert (await jobs.stop()) == ShutdownReport()
    rows = [await world.store.get(job.id) for job in stored]
    assert {(row.state, row.attempt) for row in rows} == {(JobState.available, 0)}
    assert sorted(row.claim for row in rows) == [0, 0, 1, 1, 1]
    assert ran == []


@pytest.mark.parametrize("seconds", [0.5, 3.0, GRACE - 1])
def test_row_3_what_a_claim_under_way_still_brings_is_handed_back(seconds: float) -> None:
    """The jobs are ours in the store, but the answer comes late: within the grace is not too late."""

    @virtual
    async def scenario(world: World) -> None:
        store = Doors(world, fetch=seconds)
        jobs = world.supervisor(store, shutdown_timeout=GRACE)
        ran: list[int] = []

        @jobs.worker
        async def work() -> None:
            ran.append(1)

        await jobs.start()
        job = await work.enqueue()
        await store.visited("fetch")
        report = await jobs.stop()
        row = await store.get(job.id)
        assert (row.state, row.attempt, row.claim) == (JobState.available, 0, 1)
        assert report.is_clean
        assert ran == []

    scenario()


@virtual
async def test_row_3_a_claim_whose_answer_comes_after_the_stop_is_rescued_by_another_node(world: World) -> None:
    store = Doors(world)
    doomed = world.supervisor(store, shutdown_timeout=0)

    async def work(_args: object, ctx: JobContext) -> int:
        return ctx.attempt

    await doomed.start()
    store.shut = {"fetch"}
    job = await doomed.enqueue("work")
    await store.visited("fetch")
    await doomed.stop()
    assert now() <= 6
    store.shut.clear()
    await finish(store)
    async with world.supervisor(store) as other:
        other.register_worker("work", work)
        assert (await other.wait(job, timeout=45)).state is JobState.completed


# --- what the report says ---


@pytest.mark.parametrize("door", ["apply", None])
def test_a_report_names_what_still_runs_and_what_is_not_settled_and_nothing_else(door: str | None) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = Doors(world)
        jobs = world.supervisor(store, shutdown_timeout=1)
        enough = asyncio.Event()

        async def job_of(handler: Callable[[Any, JobContext], Awaitable[object]]) -> Job[Any]:
            jobs.register_worker(handler.__name__, handler)
            job = await jobs.enqueue(handler.__name__, timeout_seconds=None)
            await world.seen.wait(JobStarted, job)
            return job

        async def ended(_args: object, _ctx: JobContext) -> None: ...
        async def ends(_args: object, ctx: JobContext) -> None:
            await ctx.cancelled.wait()

        async def fails(_args: object, ctx: JobContext) -> None:
            await ctx.cancelled.wait()
            raise ValueError

        async def is_cut(_args: object, _ctx: JobContext) -> None:
            await asyncio.sleep(FOR_EVER)

        async def will_not_end(_args: object, _ctx: JobContext) -> None:
            await deaf(enough)

        await jobs.start()
        await jobs.wait(await job_of(ended))
        settled = [await job_of(handler) for handler in (ends, fails, is_cut)]
        running = [await job_of(will_not_end), await jobs.enqueue("will_not_end")]
        await world.seen.wait(JobStarted, running[1])
        store.shut = {door} if door else set()
        report = await jobs.stop()
        assert set(report.still_running) == {job.id for job in running}
        assert set(report.unsettled) == ({job.id for job in settled} if door else set())
        assert not report.is_clean
        enough.set()
        await finish(store)

    scenario()


async def test_a_thread_that_does_not_end_is_reported_and_its_stop_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CANCEL_GRACE", 0.1)
    world = World()
    let_go = threading.Event()
    jobs = world.supervisor(shutdown_timeout=0)

    @jobs.worker
    def work() -> None:
        assert let_go.wait(60)

    try:
        await jobs.start()
        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        assert (await jobs.stop()) == ShutdownReport(still_running=(job.id,))
        assert (await world.store.get(job.id)).state is JobState.executing, "others would run it beside the thread"
    finally:
        let_go.set()


@virtual
async def test_what_is_stored_counts_as_settled_even_where_telemetry_was_never_told(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=1)

    async def hangs(event: Event) -> None:
        if isinstance(event, JobCompleted):
            await asyncio.sleep(FOR_EVER)

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(0.5)

    assert jobs.telemetry is not None
    jobs.telemetry.attach(hangs)
    await jobs.start()
    stored = await jobs.enqueue_many([work.draft() for _ in range(5)])
    await world.seen.wait(JobStarted, count=5)
    assert (await jobs.stop()) == ShutdownReport()
    assert now() <= 1 + 6
    assert {(await world.store.get(job.id)).state for job in stored} == {JobState.completed}


@virtual
async def test_everybody_who_asks_during_a_stop_gets_the_same_report(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=1)
    enough = asyncio.Event()

    @jobs.worker
    async def work() -> None:
        await deaf(enough)

    host = asyncio.get_running_loop().create_task(jobs.run())
    job = await work.on(jobs).enqueue()
    await world.seen.wait(JobStarted)
    host.cancel()
    asking = []
    for _ in range(10):
        await asyncio.sleep(0.1)
        asking.append(asyncio.get_running_loop().create_task(jobs.stop()))
    assert await asyncio.gather(*asking) == [ShutdownReport(still_running=(job.id,))] * 10
    await asyncio.wait({host})
    enough.set()


# --- strangers who cancel everything ---


def everybody_else() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@virtual
async def test_a_supervisor_whose_every_task_a_stranger_cancelled_is_not_called_clean_and_loses_no_job(
    world: World,
) -> None:
    """As signal handlers do that know no better: nothing is left that could settle or hand back."""
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> int:
        await asyncio.sleep(1 if current_context().job.rescues or now() > 10 else FOR_EVER)
        return current_context().attempt

    await jobs.start()
    job = await work.enqueue()
    await world.seen.wait(JobStarted)
    for task in everybody_else():
        task.cancel()
    await asyncio.sleep(0.1)
    assert not jobs.is_running
    report = await jobs.stop()
    row = await world.store.get(job.id)
    assert report.is_clean is (row.state is not JobState.executing)
    assert now() <= 6
    async with jobs:
        assert (await jobs.wait(job, timeout=60)).state is JobState.completed


def test_a_program_that_ends_without_a_stop_loses_no_job() -> None:
    """`asyncio.run` cancels what is left when its main task returns, and that is every task of a Supervisor."""
    store = MemoryStore(clock=LoopClock())

    async def work(_args: object, _ctx: JobContext) -> str:
        await asyncio.sleep(1)
        return "done"

    def supervisor() -> Supervisor:
        jobs = Supervisor(store, clock=LoopClock(), max_stall=None)
        jobs.register_worker("work", work)
        return jobs

    async def ends() -> Job[Any]:
        jobs = supervisor()
        running = asyncio.get_running_loop().create_task(jobs.run())
        job = await jobs.enqueue("work")
        while (await store.get(job.id)).state is not JobState.executing:
            await asyncio.sleep(0.1)
        assert not running.done()
        return job

    async def goes_on(job: Job[Any]) -> Job[Any]:
        async with supervisor() as jobs:
            return await jobs.wait(job, timeout=100)

    assert run_virtual(goes_on(run_virtual(ends()))).result == "done"


# --- a real file ---


async def nothing_left(path: Path, before: set[threading.Thread]) -> None:
    """No task, no thread, no open file, no log beside the database, and no lock on it."""
    assert everybody_else() == []

    async def gone() -> bool:
        return threads() <= before and not open_files(path)

    await until(gone, 5)
    assert {file.name for file in path.parent.iterdir()} <= {path.name}
    assert can_be_written_at_once(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.mark.parametrize("seed", [15])
async def test_f15_ten_stops_at_once_fifty_times_over_leave_nothing_of_a_file_open(path: Path, seed: int) -> None:
    rng = Random(seed)
    before, loop = threads(), asyncio.get_running_loop()
    jobs = Supervisor(SqliteStore(path), shutdown_timeout=5)
    runs: list[int] = []

    @jobs.worker
    async def work(n: int) -> None:
        await asyncio.sleep(rng.choice([0, 0.001]))
        runs.append(n)

    async def stop() -> float:
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        began = loop.time()
        assert (await jobs.stop()).is_clean
        return loop.time() - began

    for number in range(50):
        starting = [loop.create_task(jobs.start()) for _ in range(3)]
        await work.on(jobs).enqueue(number)
        took = await asyncio.gather(*(stop() for _ in range(10)))
        assert max(took) <= 5 + 6
        await asyncio.gather(*starting)
        await jobs.stop()
        await nothing_left(path, before)
    async with jobs:
        for row in await jobs.find(JobQuery(limit=50)):
            await jobs.wait(row)
    assert sorted(runs) == list(range(50)), "each ran once"
    await nothing_left(path, before)


@virtual
async def test_f15_ten_stops_at_once_fifty_times_over_leave_nothing_in_memory(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=GRACE)

    @jobs.worker
    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)

    for number in range(50):
        await jobs.start()
        job = await work.on(jobs).enqueue(number / 5)
        await world.seen.wait(JobStarted, job)
        began = now()
        reports = await asyncio.gather(*(jobs.stop() for _ in range(10)))
        assert reports == [ShutdownReport()] * 10
        assert now() - began == pytest.approx(number / 5, abs=0.1)
        assert everybody_else() == []
    assert await jobs.counts() == {("default", JobState.completed): 50}


async def test_a_start_cancelled_at_any_point_leaves_nothing_of_a_file_open_and_can_be_repeated(path: Path) -> None:
    before, loop = threads(), asyncio.get_running_loop()
    jobs = Supervisor(SqliteStore(path), shutdown_timeout=1)
    turns = late = 0
    while late < 3:
        starting = loop.create_task(jobs.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        late = 0 if starting.cancelled() else late + 1
        assert jobs.is_running is not starting.cancelled()
        assert (await jobs.stop()).is_clean
        await nothing_left(path, before)
        turns += 1 + turns // 6
    assert turns > 10
    async with jobs:
        assert jobs.is_running
    await nothing_left(path, before)


async def test_a_stop_is_bounded_while_somebody_else_holds_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CANCEL_GRACE", 0.1)
    before, loop = threads(), asyncio.get_running_loop()
    jobs = Supervisor(SqliteStore(path), shutdown_timeout=0.1)
    begun, go = asyncio.Event(), asyncio.Event()

    @jobs.worker
    async def work() -> str:
        begun.set()
        await go.wait()
        return "done"

    await jobs.start()
    job = await work.enqueue()
    await begun.wait()
    with Holder(path) as holder:
        go.set()
        asked = loop.time()
        report = await jobs.stop()
        assert loop.time() - asked <= 0.1 + 6
        assert holder.holds
    assert report == ShutdownReport(unsettled=(job.id,))
    assert ask(path, "SELECT state FROM jobs_async_jobs") == [(int(JobState.executing),)]
    await nothing_left(path, before)
