"""Several nodes on one server: who knows what, who may say what, who is rescued, and whose clock counts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from jobs_async import Event, JobContext, JobOpts, JobQuery, JobState, Supervisor, Telemetry, worker
from jobs_async.clock import SystemClock
from jobs_async.core.query import MAX_PAGE
from jobs_async.core.store import Tick
from jobs_async.runtime import queue_runner, scheduler
from jobs_async.stores.postgres import PostgresStore
from jobs_async.testing import FakeClock
from tests.postgres.fleet import FAST, Door, holds, operator, supervisor
from tests.postgres.support import PROGRAMS, ROOT, ask, until

WAIT = 60.0


@worker
async def old() -> str:
    return "old"


@worker
async def new() -> str:
    return "new"


@worker(context=True, timeout_seconds=None)
async def linger(ctx: JobContext) -> str:
    await ctx.cancelled.wait()
    return "told"


@asynccontextmanager
async def process(dsn: str, **options: Any) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A node in a process of its own, which runs when this returns."""
    command = [sys.executable, str(PROGRAMS / "node.py"), dsn, json.dumps({**FAST, **options})]
    pipe = subprocess.PIPE
    node = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
    try:
        assert node.stdout is not None
        async with asyncio.timeout(WAIT):
            assert await node.stdout.readline() == b"ready\n"
        yield node
    finally:
        if node.returncode is None:
            node.kill()
        await node.wait()


async def running(jobs: Supervisor, *job_ids: int) -> bool:
    found = await jobs.find(JobQuery(ids=list(job_ids), states=[JobState.executing]))
    return len(found) == len(job_ids)


# ------------------------------------------------------------------------------------------------ who is who


async def test_nodes_say_what_they_know_and_what_they_run(pg_dsn: str) -> None:
    async with (
        supervisor(pg_dsn, old, queues={"a": 1}),
        supervisor(pg_dsn, old, new, queues={"a": 2, "b": 3}),
        operator(pg_dsn) as other,
    ):
        nodes = [(dict(node.queues), node.workers, node.alive) for node in await other.nodes()]
        assert nodes == [({"a": 1}, ("old",), True), ({"a": 2, "b": 3}, ("new", "old"), True)]
    async with operator(pg_dsn) as other:
        assert [node.alive for node in await other.nodes()] == [False, False]


async def test_in_a_rolling_deploy_a_job_of_tomorrow_goes_to_who_knows_it(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_runner, "HAND_BACK", 0.2)
    async with AsyncExitStack() as fleet:
        v1 = [await fleet.enter_async_context(supervisor(pg_dsn, old)) for _ in range(3)]
        v2 = await fleet.enter_async_context(supervisor(pg_dsn, old, new))
        sent = await v1[0].enqueue_many([new.draft() for _ in range(30)])
        ended = [await v1[0].wait(job, timeout=WAIT) for job in sent]
        assert {(job.state, job.result, job.attempt) for job in ended} == {(JobState.completed, "new", 1)}
        (known_by,) = [node.id for node in await v2.nodes() if "new" in node.workers]
        assert {job.node for job in ended} == {known_by}
        await v2.stop()
        lost = await v1[0].wait((await v1[0].enqueue("new")).id, timeout=WAIT)
        assert (lost.state, lost.last_error and lost.last_error.error) == (JobState.discarded, queue_runner.UNKNOWN)


# ------------------------------------------------------------------------------------------------ who may say what


async def test_every_node_can_pause_scale_and_cancel_for_all(pg_dsn: str) -> None:
    door = Door()

    @worker(context=True)
    async def busy(ctx: JobContext) -> None:
        await door.pass_through(ctx.job.id)

    async with (
        supervisor(pg_dsn, busy, linger, queues={"default": 1}) as first,
        supervisor(pg_dsn, busy, linger, queues={"default": 1}) as second,
        operator(pg_dsn) as other,
    ):
        await first.pause_queue("default")
        held = await second.enqueue_many([busy.draft() for _ in range(6)])
        assert [await each.store.fetch("default", 5, node=None) for each in (first, second, other)] == [
            await other.store.fetch("default", 5, node=None)
        ] * 3
        assert not door.inside
        await other.resume_queue("default")
        await until(lambda: holds(lambda: len(door.inside) == 2))
        await second.scale_queue("default", 2)
        await until(lambda: holds(lambda: len(door.inside) == 4))
        assert {(await other.get(job_id)).node for job_id in door.inside} == {
            node.id for node in await other.nodes()
        }, "each runs two"
        door.opened.set()
        for passed in held:
            await other.wait(passed, timeout=WAIT)
        cut = await first.enqueue_many([linger.draft() for _ in range(4)])
        await until(lambda: running(other, *(job.id for job in cut)))
        for job, by in zip(cut, (first, second, other, other), strict=True):
            await by.cancel(job.id)
        ended = [await other.wait(job, timeout=WAIT) for job in cut]
        assert [(job.state, job.result) for job in ended] == [(JobState.cancelled, "told")] * 4


# ------------------------------------------------------------------------------------------------ other processes


async def test_results_are_waited_for_across_processes_and_a_killed_one_is_rescued(pg_dsn: str) -> None:
    async with operator(pg_dsn) as other, process(pg_dsn) as first:
        assert await other.result(await other.enqueue("where"), timeout=WAIT) == first.pid
        stuck = await other.enqueue_many([linger_draft() for _ in range(3)])
        await until(lambda: running(other, *(job.id for job in stuck)))
        first.kill()
        async with process(pg_dsn) as second:
            ended = [await other.wait(job, timeout=WAIT) for job in stuck]
            assert [(job.result, job.attempt, job.rescues) for job in ended] == [(second.pid, 2, 1)] * 3
            assert [job.errors[-1].error for job in ended] == ["rescued: node lost"] * 3


def linger_draft() -> Any:
    return linger.draft()


@pytest.mark.soak
async def test_with_the_usual_lease_a_killed_node_is_rescued_within_45_seconds(pg_dsn: str, measured: Any) -> None:
    usual = {"heartbeat": 5.0, "lease": 30.0, "rescue_interval": 10.0}
    loop = asyncio.get_running_loop()
    async with operator(pg_dsn) as other, process(pg_dsn, **usual) as first:
        stuck = await other.enqueue_many([linger.draft() for _ in range(8)])
        await until(lambda: running(other, *(job.id for job in stuck)))
        async with process(pg_dsn, **usual) as second:
            killed = loop.time()
            first.kill()
            for job in stuck:
                assert (await other.wait(job.id, timeout=WAIT)).result == second.pid
            seconds = loop.time() - killed
    measured("`kill -9` of a node on PostgreSQL", "lease 30 s, heartbeat 5 s", f"run again after {seconds:.1f} s")


# ------------------------------------------------------------------------------------------------ whose clock counts


class Fast(SystemClock):
    """A minute of the wall passes in so many seconds; the uptime is the machine's."""

    __slots__ = ("_began", "_factor", "_start")

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._factor = 60 / seconds
        self._start, self._began = datetime(2030, 1, 1, tzinfo=UTC), self.uptime()[1]

    def now(self) -> datetime:
        return self._start + timedelta(seconds=(self.uptime()[1] - self._began) * self._factor)


async def test_a_tick_is_fired_once_by_five_nodes_of_which_one_after_the_other_is_killed(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_EVERY", 0.05)
    clock, rng = Fast(0.2), Random(5)
    tried: list[Tick] = []
    insert_tick = Supervisor.insert_tick

    async def counted(self: Supervisor, entry: Any, tick: Tick) -> Any:
        tried.append(tick)
        return await insert_tick(self, entry, tick)

    monkeypatch.setattr(Supervisor, "insert_tick", counted)
    await PostgresStore(pg_dsn).migrate()

    async def node() -> Supervisor:
        jobs = supervisor(pg_dsn, old, store=PostgresStore(pg_dsn, clock=clock), clock=clock)
        jobs.register_cron("entry", "* * * * *", "old")
        await jobs.start()
        return jobs

    async def fired(least: int) -> bool:
        ((count,),) = await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs")
        return bool(count >= least)

    nodes = [await node() for _ in range(5)]
    for round_ in range(1, 5):
        await until(lambda least=6 * round_: fired(least))  # type: ignore[misc]
        victim = nodes.pop(rng.randrange(len(nodes)))
        assert victim._engine is not None
        await victim._engine.die()
        await victim.stop()
        nodes.append(await node())
    await asyncio.gather(*(each.stop() for each in nodes))
    async with PostgresStore(pg_dsn) as store:
        jobs = await store.select(JobQuery(limit=MAX_PAGE, newest_first=False))
    ticks = [job.meta["cron_at"] for job in jobs]
    assert len(set(ticks)) == len(ticks) >= 24
    assert len([tick for tick in tried if tick.name == "entry"]) > len(ticks), "several wanted the same"


SLACK = timedelta(seconds=5)
"""By so much, at most, the time that a node believes the server has is off on a machine that is busy."""
AHEAD, BEHIND = timedelta(minutes=10), timedelta(minutes=-10)


class Wrong(SystemClock):
    """The clock of a machine where it was set by hand."""

    __slots__ = ("_by",)

    def __init__(self, by: timedelta) -> None:
        super().__init__()
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by


async def server_time(dsn: str) -> datetime:
    now: datetime
    ((now,),) = await ask(dsn, "SELECT clock_timestamp()")
    return now


@pytest.fixture(params=["the Supervisor's", "the whole process's"])
def wrongly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How a node comes by a clock that is wrong."""
    right = SystemClock.now

    def of(by: timedelta) -> dict[str, Any]:
        if request.param == "the Supervisor's":
            return {"clock": Wrong(by)}
        monkeypatch.setattr(SystemClock, "now", lambda self: right(self) + by)
        return {}

    return of


@pytest.mark.parametrize("by", [AHEAD, BEHIND], ids=["10 min ahead", "10 min behind"])
async def test_a_node_whose_clock_is_wrong_starts_nothing_early_and_steals_no_lease(
    pg_dsn: str, wrongly: Any, by: timedelta
) -> None:
    door = Door()

    @worker(context=True, timeout_seconds=None)
    async def busy(ctx: JobContext) -> None:
        await door.pass_through(ctx.job.id)

    lease: dict[str, Any] = {"heartbeat": 0.2, "lease": 1.0, "rescue_interval": 0.2}
    async with supervisor(pg_dsn, busy, old, queues={"right": 2}, **lease) as right:
        options = wrongly(by)
        async with supervisor(pg_dsn, busy, old, queues={"wrong": 2}, **lease, **options) as wrong:
            before = await server_time(pg_dsn)
            held = [await right.enqueue("busy", queue=queue) for queue in ("right", "wrong")]
            ways = ((wrong, "right"), (right, "wrong"))
            later = [await sender.enqueue("old", queue=queue, delay=1.5) for sender, queue in ways]
            later += [await wrong.enqueue("old", queue="wrong", delay=1.5, unique_key="k")]
            after = await server_time(pg_dsn)
            ended = [await right.wait(job, timeout=WAIT) for job in later]  # meanwhile a lease would have run out
            for job in ended:
                assert before - SLACK <= job.inserted_at <= after + SLACK
                assert (job.scheduled_at - job.inserted_at).total_seconds() == 1.5
                assert job.attempted_at is not None
                assert job.scheduled_at <= job.attempted_at <= await server_time(pg_dsn) + SLACK
                assert job.completed_at is not None
                assert job.attempted_at <= job.completed_at <= await server_time(pg_dsn) + SLACK
            assert [node.alive for node in await right.nodes()] == [True, True]
            door.opened.set()
            done = [await right.wait(job, timeout=WAIT) for job in held]
            assert [(job.attempt, job.rescues) for job in done] == [(1, 0)] * 2


@pytest.mark.parametrize("by", [AHEAD, BEHIND], ids=["10 min ahead", "10 min behind"])
async def test_a_node_whose_clock_is_wrong_fires_ticks_when_it_is_time_and_not_before(
    pg_dsn: str, wrongly: Any, by: timedelta
) -> None:
    """One tick is due in five minutes, another was five minutes ago and nobody was there; both entries are known."""
    await PostgresStore(pg_dsn).migrate()
    now = await server_time(pg_dsn)
    times = {"to come": now + timedelta(minutes=5), "missed": now - timedelta(minutes=5)}
    jobs = supervisor(pg_dsn, old, **wrongly(by))
    for name, at in times.items():
        jobs.register_cron(name, f"{at.minute} {at.hour} * * *", "old")
        entry = jobs._crons[name]
        await ask(pg_dsn, "INSERT INTO jobs_async_ticks VALUES ($1, $2)", entry.series, now - timedelta(minutes=9))
    async with jobs:
        engine = jobs._engine
        assert engine is not None
        assert engine._scheduler is not None
        plans = engine._scheduler._plans
        await until(lambda: holds(lambda: all(plan.is_known for plan in plans.values())))
        fired = [(job.meta["cron"], job.meta["cron_at"]) for job in await jobs.find()]
        assert [name for name, _ in fired] == ["missed"]
        assert datetime.fromisoformat(fired[0][1]) == times["missed"].replace(second=0, microsecond=0)
        assert plans["to come"].next_at == times["to come"].replace(second=0, microsecond=0)


async def test_what_is_told_of_bears_the_server_s_time(pg_dsn: str, wrongly: Any) -> None:
    seen: list[Event] = []
    telemetry = Telemetry()
    telemetry.attach(seen.append)
    before = await server_time(pg_dsn)
    async with supervisor(pg_dsn, old, telemetry=telemetry, **wrongly(AHEAD)) as jobs:
        await jobs.wait(await jobs.enqueue("old"), timeout=WAIT)
        await until(lambda: holds(lambda: "job_completed" in [event.type for event in seen]))
    after = await server_time(pg_dsn)
    assert all(before - SLACK <= event.at <= after + SLACK for event in seen)


async def test_who_gives_no_signs_of_life_asks_for_the_time_again(pg_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a web application that only enqueues, on a machine that was frozen for an hour."""
    async with PostgresStore(pg_dsn) as store:
        assert store._server_clock is not None
        assert store._server_clock._told is not None
        at, uptime = store._server_clock._told
        store._server_clock._told = at - timedelta(hours=1), uptime
        stale = await store.enqueue("old")
        assert await server_time(pg_dsn) - stale.inserted_at > timedelta(minutes=59), "fresh enough is not asked again"
        store._server_clock._told = at - timedelta(hours=1), uptime - 61
        for options in (JobOpts(), JobOpts(unique_key="k")):
            before = await server_time(pg_dsn)
            job = await store.enqueue("old", None, options)
            assert before - SLACK <= job.inserted_at <= await server_time(pg_dsn) + SLACK
            store._server_clock._told = at - timedelta(hours=1), uptime - 61


async def test_a_store_with_a_clock_of_its_own_shares_none() -> None:
    dsn = "postgresql://nobody@nowhere/d"
    assert PostgresStore(dsn, clock=FakeClock()).shared_clock is None
    assert PostgresStore(dsn).shared_clock is not None
