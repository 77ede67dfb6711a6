"""F15, F21, F22: starts and stops in a crowd, a loop that does not turn, and fewer connections than there is to do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest

from jobs_async import Draft, JobContext, JobOpts, JobState, LoopStalled, StaleSettlement, StoreError, Supervisor
from jobs_async.stores.postgres import PostgresStore
from tests.conftest import Measured
from tests.postgres.node import Node, pace
from tests.postgres.remains import no_backends
from tests.postgres.remains import nothing_left as nothing_left
from tests.postgres.support import ask, until

GUARD = 100.0

pytestmark = pytest.mark.usefixtures("nothing_left")


def now() -> float:
    return asyncio.get_running_loop().time()


# --- F15 ---


async def start_and_stop(dsn: str, tasks: int, rounds: int) -> tuple[int, float]:
    """Many start and stop one Supervisor, as it comes; how many stops there were, and how long the longest took."""
    took: list[float] = []
    jobs = Supervisor(PostgresStore(dsn), queues={"default": 2}, poll_interval=0.05, shutdown_timeout=1)

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(0.01)

    async def stop() -> None:
        began = now()
        await jobs.stop()
        took.append(now() - began)

    async def start() -> None:
        try:
            await jobs.start()
        except StoreError as error:
            assert "stopped before" in str(error)  # noqa: PT017  # the one that a stop may cause

    async def one(number: int) -> None:
        for turn in range(rounds):
            match (number + turn) % 5:
                case 0:
                    await stop()  # before any start, or beside one
                    await start()
                case 1:
                    await asyncio.gather(start(), stop(), stop())
                case 2:
                    starting = asyncio.get_running_loop().create_task(start())
                    await asyncio.sleep(0)
                    starting.cancel()
                    await asyncio.wait({starting})
                    await stop()
                case 3:
                    await start()
                    await asyncio.gather(stop(), stop(), stop())
                case _:
                    await asyncio.gather(start(), start())
                    await stop()

    await jobs.stop()
    async with asyncio.timeout(GUARD + 2 * tasks * rounds):
        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(one(number))
        await jobs.stop()
    assert jobs.is_stopped
    assert not jobs.store.is_open
    await no_backends(dsn)
    async with jobs:  # and it still works
        job = await work.on(jobs).enqueue()
        assert (await jobs.wait(job, timeout=GUARD)).state is JobState.completed
    await no_backends(dsn)
    return len(took), max(took)


async def test_f15_concurrent_starts_and_stops_leave_nothing(pg_dsn: str) -> None:
    await start_and_stop(pg_dsn, 5, 5)


@pytest.mark.soak
async def test_f15_concurrent_starts_and_stops_end_in_time(pg_dsn: str, measured: Measured) -> None:
    stops, longest = await start_and_stop(pg_dsn, 10, 50)
    measured("F15, PostgreSQL", f"10 tasks, 50 rounds, {stops} stops", f"longest {longest:.1f} s, nothing left")
    assert longest <= 1 + 6 + 5, "a stop that meets a start has 5 seconds more"


# --- F21 ---


class Blocker:
    """What two nodes can run: a handler that blocks its loop at its first attempt, and neighbours."""

    def __init__(self, seconds: float) -> None:
        self.runs: Counter[str] = Counter()
        self.over = threading.Event()
        """Whether a second run of the blocker may come to its end."""
        self._seconds = seconds

    def register(self, jobs: Supervisor) -> None:
        jobs.register_worker("block", self._block)
        jobs.register_worker("neighbour", self._neighbour)

    async def _block(self, _args: object, ctx: JobContext) -> None:
        self.runs["block"] += 1
        if ctx.attempt == 1:
            time.sleep(self._seconds)  # the blocker
            return
        while not self.over.is_set():  # still running when the outcome of the first run comes
            await asyncio.sleep(0.02)

    async def _neighbour(self, key: str, _ctx: JobContext) -> None:
        self.runs[key] += 1
        await asyncio.sleep(0.05)


async def block(dsn: str, *, lease: float, seconds: float, max_stall: float = 300.0) -> tuple[Counter[str], list[Any]]:
    """One of two nodes is blocked for so long: how often what has run, and the outcomes that were refused."""
    blocker = Blocker(seconds)
    options = {**pace(lease), "max_stall": max_stall}

    async def is_blocked() -> bool:
        return blocker.runs["block"] > 0

    async def is_told() -> bool:
        return bool(first.of(LoopStalled)) and (seconds < max_stall or bool(first.of(StaleSettlement)))

    async def all_completed() -> bool:
        return {state for _, state in await asking.counts()} == {JobState.completed}

    async with Node(dsn, blocker.register, **options) as first, Supervisor(PostgresStore(dsn), queues={}) as asking:
        await asking.enqueue_many([Draft("block"), *[Draft("neighbour", f"n{n}") for n in range(4)]])
        await until(is_blocked)
        async with Node(dsn, blocker.register, **options):
            await until(is_told, GUARD + seconds)
            blocker.over.set()
            await until(all_completed, GUARD)
    await no_backends(dsn)
    assert any("_block" in call for event in first.of(LoopStalled) for call in event.stack)
    return blocker.runs, first.of(StaleSettlement)


async def test_f21_row_64_a_blocked_loop_keeps_its_lease_by_a_connection_of_its_own(pg_dsn: str) -> None:
    runs, refused = await block(pg_dsn, lease=2.0, seconds=5.0)
    assert set(runs.values()) == {1}
    assert not refused


async def test_f21_beyond_max_stall_another_node_takes_over_and_the_late_outcome_is_refused(pg_dsn: str) -> None:
    runs, refused = await block(pg_dsn, lease=1.0, seconds=4.0, max_stall=0.5)
    assert runs["block"] == 2
    assert [event.job.worker for event in refused].count("block") == 1


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_f21_row_64_a_minute_blocked_under_the_default_lease(pg_dsn: str, measured: Measured) -> None:
    runs, refused = await block(pg_dsn, lease=30.0, seconds=60.0)
    most = max(runs.values())
    measured("F21, PostgreSQL", "a handler blocks its loop for 60 s, lease 30 s", f"each ran {most} time, refused 0")
    assert set(runs.values()) == {1}
    assert not refused


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_f21_a_minute_blocked_beyond_max_stall(pg_dsn: str, measured: Measured) -> None:
    runs, refused = await block(pg_dsn, lease=10.0, seconds=60.0, max_stall=15.0)
    late = [event.job.worker for event in refused].count("block")
    measured("F21, PostgreSQL", "the same, max_stall 15 s, lease 10 s", f"ran {runs['block']} times, refused {late}")
    assert (runs["block"], late) == (2, 1)


# --- F22 ---


async def work_off(dsn: str, jobs_in_all: int) -> float:
    """Eight queues of fifty slots on two connections, while others ask, too; seconds until all is done."""
    names = [f"q{n}" for n in range(8)]
    runs: Counter[int] = Counter()
    store = PostgresStore(dsn, pool_size=2)
    jobs = Supervisor(store, queues=dict.fromkeys(names, 50), poll_interval=0.1, shutdown_timeout=5)

    async def work(n: int, _ctx: object) -> None:
        runs[n] += 1
        if n % 10 == 0:
            await jobs.counts()  # what a handler asks takes one of the two, too
        await asyncio.sleep(0.01)

    jobs.register_worker("work", work)
    enough = asyncio.Event()

    async def look() -> None:
        while not enough.is_set():
            await asyncio.gather(jobs.find(), jobs.counts(), jobs.nodes())

    async with jobs:
        began = now()
        drafts = [Draft("work", n, JobOpts(queue=names[n % 8])) for n in range(jobs_in_all)]
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(look())
            await jobs.enqueue_many(drafts)

            async def all_completed() -> bool:
                return (await ask(dsn, "SELECT count(*) FROM jobs_async_jobs WHERE state = 2")) == [(jobs_in_all,)]

            await until(all_completed, GUARD)
            took = now() - began
            enough.set()
    assert set(runs.values()) == {1}
    await no_backends(dsn)
    return took


async def test_f22_two_connections_and_eight_full_queues_do_not_deadlock(pg_dsn: str) -> None:
    await work_off(pg_dsn, 800)


@pytest.mark.soak
async def test_f22_two_connections_and_eight_full_queues_do_5000_jobs(pg_dsn: str, measured: Measured) -> None:
    took = await work_off(pg_dsn, 5_000)
    measured("F22", "pool_size 2, 8 queues, limit 50, 5,000 jobs, 4 onlookers", f"all done after {took:.0f} s")
    assert took <= 60
