"""Clocks jump and disagree: no job starts early, none is stolen from a live node, none is lost, no tick comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs_async import (
    ConstantBackoff,
    Job,
    JobCompleted,
    JobOpts,
    JobRescued,
    JobStarted,
    JobState,
    MemoryStore,
    OptionError,
    SqliteStore,
    StaleSettlement,
    Store,
    Supervisor,
    current_context,
    worker,
)
from jobs_async.core.cron import CronExpr
from jobs_async.core.options import NewJob
from jobs_async.core.store import Fetched, Node, Tick
from jobs_async.testing import FakeClock
from jobs_async.testing.loop import BEGINNING, LoopClock
from tests.runtime.support import World, now, virtual

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
JUMPS = {"1 s": SECOND, "1 h": HOUR, "1 d": DAY, "-1 s": -SECOND, "-1 h": -HOUR, "-1 d": -DAY}
STARTS = {
    "an ordinary day": BEGINNING,
    "half a minute before 2**31 seconds": datetime(2038, 1, 19, 3, 13, 38, tzinfo=UTC),
    "half a minute before a leap day": datetime(2028, 2, 28, 23, 59, 30, tzinfo=UTC),
    "half a minute before the end of a leap day": datetime(2028, 2, 29, 23, 59, 30, tzinfo=UTC),
}
SKEW = timedelta(minutes=10)
PATIENCE = 30.0
POLL = 300.0
"""Virtual seconds between two looks: long, for some scenarios wait a day."""

jumps = pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


class Wall(LoopClock):
    """A wall clock that can be set, above the uptime that everybody shares."""

    def __init__(self, start: datetime = BEGINNING) -> None:
        self._ahead = start - BEGINNING

    def now(self) -> datetime:
        return super().now() + self._ahead

    def jump(self, step: timedelta) -> None:
        self._ahead += step


class Watch:
    """Looks over a store's shoulder: which deferred jobs it gave out before their time, and how often it was asked."""

    def __init__(self) -> None:
        self.early: list[tuple[Job[Any], datetime]] = []
        self.asked = 0

    def saw(self, fetched: Fetched, latest: datetime) -> Fetched:
        deferred = [job for job in fetched.jobs if job.attempt > 1 or job.scheduled_at > job.inserted_at]
        self.early += [(job, latest) for job in deferred if job.scheduled_at > latest]
        self.asked += 1
        return fetched


class WatchedMemory(MemoryStore):
    def __init__(self, clock: Wall) -> None:
        super().__init__(clock=clock)
        self.watch = Watch()

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        return self.watch.saw(await super().fetch(queue, limit, node=node), self._clock.now())


class WatchedSqlite(SqliteStore):
    def __init__(self, path: Path, clock: FakeClock) -> None:
        super().__init__(path, clock=clock)
        self.watch = Watch()

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        before = self._clock.now()
        fetched = await super().fetch(queue, limit, node=node)
        return self.watch.saw(fetched, max(before, self._clock.now()))


def supervisor(world: World, store: Store, clock: LoopClock) -> Supervisor:
    """One whose own clock is not the store's; slow, for virtual days are long."""
    world.clock = clock
    slow = {"poll_interval": POLL, "heartbeat": POLL, "lease": 5 * POLL, "rescue_interval": 2 * POLL}
    return world.supervisor(store, queues={"default": 50}, **slow)


# --- memory, on virtual time: whole lives in which the clock is set once ---


@starts
@jumps
def test_f8_row_75_jobs_of_every_kind_live_through_a_wall_clock_that_jumps(jump: timedelta, start: datetime) -> None:
    """Two nodes whose own clocks are 10 minutes fast and slow, and the store's clock jumps under both."""

    @virtual
    async def scenario(world: World) -> None:
        wall = Wall(start)
        store = WatchedMemory(wall)
        fast = supervisor(world, store, Wall(start + SKEW))
        slow = supervisor(world, store, Wall(start - SKEW))
        runs: list[int] = []

        async def work(args: Any, _ctx: object) -> None:
            job = current_context().job
            runs.append(job.id)
            await asyncio.sleep(args["seconds"])
            if job.attempt <= args["fails"]:
                raise ConnectionError

        for node in (fast, slow):
            node.register_worker("work", work, retry_strategy=ConstantBackoff(300))

        def put(seconds: float = 0, fails: int = 0, **options: Any) -> Awaitable[Job[Any]]:
            return fast.enqueue("work", {"seconds": seconds, "fails": fails}, **options)

        async with fast, slow:
            kept = {node.id for node in await store.nodes()}
            running = await put(1000, timeout_seconds=None)
            limited = await put(100, timeout_seconds=110)
            again = await put(fails=1)
            both = await put(200, fails=1)
            soon, at = await put(delay=5), await put(scheduled_at=wall.now() + 90 * SECOND)
            late = await slow.enqueue("work", {"seconds": 0, "fails": 0}, delay=4000)
            assert [(job.scheduled_at - job.inserted_at).total_seconds() for job in (soon, late)] == [5, 4000]
            await asyncio.sleep(60)
            assert (await store.get(again.id)).state is JobState.retryable
            wall.jump(jump)
            jobs = (running, limited, again, both, soon, at, late)
            ended = [(await world.seen.wait(JobCompleted, job)).job for job in jobs]

            assert [runs.count(job.id) for job in ended] == [1, 1, 2, 2, 1, 1, 1]
            assert store.watch.early == []
            for job in ended:
                allowed = timedelta(seconds=POLL + 1) + max(jump, timedelta())
                assert job.attempted_at is not None
                assert job.attempted_at - job.scheduled_at <= allowed, "it was looked at for too long"
            assert {node.id for node in await store.nodes() if node.alive} == kept, "a lease was stolen"
        assert not world.seen.of(JobRescued) + world.seen.of(StaleSettlement)

    scenario()


@jumps
def test_f8_the_job_of_a_dead_node_is_rescued_in_time_whatever_the_wall_says(jump: timedelta) -> None:
    @virtual
    async def scenario(world: World) -> None:
        wall = Wall()
        store = MemoryStore(clock=wall)
        world.clock = wall
        (lost,) = await store.insert([NewJob("work", "{}")])
        await store.beat(Node(id="dead"), 30, join=True)
        assert [job.id for job in (await store.fetch("default", 1, node="dead")).jobs] == [lost.id]
        async with world.supervisor(store) as jobs:

            @jobs.worker
            async def work() -> None: ...

            await asyncio.sleep(15)
            wall.jump(jump)
            await asyncio.sleep(14)
            assert (await jobs.get(lost.id)).state is JobState.executing, "its lease holds for another second"
            assert (await jobs.wait(lost.id)).rescues == 1
            assert now() <= 45

    scenario()


@jumps
def test_f8_timeouts_deadlines_and_stops_do_not_notice_the_wall(jump: timedelta) -> None:
    @virtual
    async def scenario(world: World) -> None:
        world.clock = wall = Wall()
        jobs = world.supervisor(MemoryStore(clock=wall), shutdown_timeout=20)
        left: list[float] = []

        @jobs.worker(timeout_seconds=50, max_attempts=1)
        async def endless() -> None:
            wall.jump(jump)
            deadline = current_context().deadline
            assert deadline is not None
            left.append((deadline - wall.now()).total_seconds())
            await asyncio.sleep(1000)

        async with jobs:
            ended = await jobs.wait(await endless.enqueue())
            assert ended.state is JobState.discarded
            assert now() == pytest.approx(50, abs=0.1)
            await endless.enqueue()
            await world.seen.wait(JobStarted, count=2)
        assert now() == pytest.approx(70, abs=0.2)
        assert left == [pytest.approx(50)] * 2

    scenario()


@pytest.mark.parametrize("skew", [SKEW, -SKEW], ids=["fast", "slow"])
def test_f8_a_job_edited_by_a_supervisor_whose_clock_is_off_is_due_when_it_was_told(skew: timedelta) -> None:
    @virtual
    async def scenario(world: World) -> None:
        wall = Wall()
        jobs = supervisor(world, MemoryStore(clock=wall), Wall(BEGINNING + skew))
        at = wall.now() + HOUR
        job = await jobs.enqueue("work", delay=60)
        assert (await jobs.edit(job.id, scheduled_at=at)).scheduled_at == at
        assert (await jobs.edit(job.id, delay=60)).scheduled_at == wall.now() + 60 * SECOND

    scenario()


# --- SQLite: real time for the loops, and a clock that moves only when it is told to ---


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


async def until(fact: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await fact():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("jump", "start"),
    [
        (SECOND, "an ordinary day"),
        (-SECOND, "half a minute before the end of a leap day"),
        (HOUR, "half a minute before a leap day"),
        (-HOUR, "half a minute before 2**31 seconds"),
        (DAY, "half a minute before 2**31 seconds"),
        (-DAY, "half a minute before the end of a leap day"),
    ],
)
async def test_f8_row_75_a_sqlite_file_lives_through_a_wall_clock_that_jumps(
    path: Path, jump: timedelta, start: str
) -> None:
    """Two nodes with stores of their own on one file; each Supervisor's own clock is off by ten minutes."""
    clock = FakeClock(STARTS[start])
    stores = [WatchedSqlite(path, clock) for _ in range(2)]
    starts: list[int] = []
    go = asyncio.Event()

    async def work(args: Any, _ctx: object) -> None:
        job = current_context().job
        starts.append(job.id)
        if args["holds"]:
            await go.wait()
        if job.attempt <= args["fails"]:
            raise ConnectionError

    async def looked_at_twice() -> None:
        """Both nodes have asked for jobs, twice, since this was called."""
        seen = [store.watch.asked for store in stores]

        async def both() -> bool:
            return all(store.watch.asked >= before + 2 for store, before in zip(stores, seen, strict=True))

        await until(both)

    async def has_beaten() -> bool:
        return {node.beat_at for node in await stores[0].nodes()} == {clock.now()}

    async with AsyncExitStack() as stack:
        for store, skew in zip(stores, (SKEW, -SKEW), strict=True):
            await stack.enter_async_context(store)
            jobs = Supervisor(
                store,
                queues={"default": 20},
                poll_interval=0.01,
                heartbeat=0.02,
                rescue_interval=0.02,
                max_stall=None,  # a watchdog lives in real time
                clock=FakeClock(STARTS[start] + skew),
                rng=Random(7),
            )
            jobs.register_worker("work", work, retry_strategy=ConstantBackoff(300))
            await stack.enter_async_context(jobs)

        async def put(holds: bool = False, fails: int = 0, **options: Any) -> int:
            return (await jobs.enqueue("work", {"holds": holds, "fails": fails}, **options)).id

        running, again, both = await put(holds=True), await put(fails=1), await put(holds=True, fails=1)
        waiting = [await put(delay=at) for at in (40, 7200, 200_000)]
        waiting.append(await put(scheduled_at=clock.now() + 50 * SECOND))

        async def is_under_way() -> bool:
            rows = {job.id: job.state for job in await jobs.find()}
            executing = JobState.executing
            return (rows[running], rows[again], rows[both]) == (executing, JobState.retryable, executing)

        await until(is_under_way)
        kept = {node.id for node in await store.nodes() if node.alive}
        clock.jump(jump)
        await looked_at_twice()
        go.set()
        assert (await jobs.wait(running, timeout=PATIENCE)).rescues == 0
        for _ in range(3):  # across the boundary that begins with half a minute
            clock.advance(20)
            await until(has_beaten)
            await looked_at_twice()
        clock.jump(200_000 * SECOND + DAY)
        ended = [await jobs.wait(job, timeout=PATIENCE) for job in (running, again, both, *waiting)]
        assert {job.state for job in ended} == {JobState.completed}
        assert [starts.count(job.id) for job in ended] == [1, 2, 2, 1, 1, 1, 1]
        assert {job.rescues for job in ended} == {0}
        assert {node.id for node in await store.nodes() if node.alive} == kept, "a lease was stolen"
    assert stores[0].watch.early + stores[1].watch.early == []


# --- ticks ---


class Nodes:
    """Several nodes on one set of jobs, each with a wall clock of its own that is off."""

    def __init__(self, stores: list[Store], clocks: list[FakeClock]) -> None:
        self.stores, self.clocks = stores, clocks

    async def fire(self, tick: Tick) -> int:
        """All of them try the same instant at the same time; how many of them enqueued."""
        tries = (store.insert([NewJob("nightly", "{}")], tick=tick) for store in self.stores)
        return sum(map(len, await asyncio.gather(*tries)))

    def jump(self, step: timedelta) -> None:
        for clock in self.clocks:
            clock.jump(step)


@pytest.fixture(params=["memory", "sqlite"])
async def nodes(request: pytest.FixtureRequest, path: Path) -> Any:
    clocks = [FakeClock(BEGINNING + SKEW * number) for number in (-1, 0, 1)]
    if request.param == "memory":
        yield Nodes([MemoryStore(clock=clocks[0])] * 3, clocks)
        return
    async with AsyncExitStack() as stack:
        files: list[Store] = [await stack.enter_async_context(SqliteStore(path, clock=clock)) for clock in clocks]
        yield Nodes(files, clocks)


@starts
async def test_f8_row_34_a_tick_is_spent_once_by_any_number_of_nodes_however_their_clocks_jump(
    nodes: Nodes, start: datetime
) -> None:
    minutes = [Tick("nightly", start + timedelta(minutes=number)) for number in range(3)]
    assert [await nodes.fire(tick) for tick in minutes] == [1, 1, 1]
    for jump in JUMPS.values():
        nodes.jump(jump)
        assert [await nodes.fire(tick) for tick in minutes] == [0, 0, 0], "a minute was run again"
    later = [Tick("nightly", start + jump) for jump in JUMPS.values()]
    assert [await nodes.fire(tick) for tick in (*later, *later)] == [1] * len(JUMPS) + [0] * len(JUMPS)
    assert sum((await nodes.stores[-1].tally()).values()) == 3 + len(JUMPS)


# --- naive datetimes ---


@worker
async def nightly() -> None: ...


def takers(at: datetime) -> dict[str, Callable[[], Any]]:
    """Everything that is given an instant."""
    memory = MemoryStore()
    jobs = Supervisor(memory, queues={}, workers=[nightly])
    return {
        "JobOpts": lambda: JobOpts(scheduled_at=at),
        "options of a worker": lambda: nightly.options(scheduled_at=at),
        "enqueue": lambda: jobs.enqueue("work", scheduled_at=at),
        "enqueue of a worker": lambda: nightly.on(jobs).options(scheduled_at=at).enqueue(),
        "purge": lambda: memory.purge([JobState.completed], at),
        "delete_completed": lambda: memory.delete_completed(at),
        "Tick": lambda: Tick("nightly", at),
        "FakeClock": lambda: FakeClock(at),
        "next_after of a cron": lambda: CronExpr.parse("* * * * *").next_after(at),
        "matches of a cron": lambda: CronExpr.parse("* * * * *").matches(at),
        "edit": lambda: jobs.edit(1, scheduled_at=at),
    }


@pytest.mark.parametrize("taker", takers(BEGINNING))
@settings(max_examples=25)
@given(at=st.datetimes())
def test_row_76_a_naive_datetime_is_refused_wherever_an_instant_is_taken(taker: str, at: datetime) -> None:
    async def ask() -> None:
        answer = takers(at)[taker]()
        if asyncio.iscoroutine(answer):
            await answer

    with pytest.raises((OptionError, ValueError), match=r"time zone|naive"):
        asyncio.run(ask())


@example(at=datetime(2025, 11, 2, 1, 30, tzinfo=ZoneInfo("America/Chicago")))  # an hour that comes twice
@given(at=st.datetimes(datetime(1971, 1, 1), datetime(9000, 1, 1), timezones=st.timezones()))
async def test_row_76_an_aware_one_is_one_instant_in_whatever_zone_it_is_said(at: datetime) -> None:
    utc = at.astimezone(UTC)
    assert JobOpts(scheduled_at=at).scheduled_at == utc
    assert JobOpts(scheduled_at=at).scheduled_at.tzinfo is UTC  # type: ignore[union-attr]
    assert FakeClock(at).now() == utc
    store = MemoryStore(clock=FakeClock())
    assert len(await store.insert([NewJob("work", "{}")], tick=Tick("t", at))) == 1
    assert await store.insert([NewJob("work", "{}")], tick=Tick("t", utc)) == []
