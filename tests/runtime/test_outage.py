"""A store that is away or does not answer: it is told of once, nothing waits for ever, and all goes on afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import pytest

from jobs_async import (
    Draft,
    Job,
    JobCompleted,
    JobInterrupted,
    JobOpts,
    JobStarted,
    JobState,
    LeaseLost,
    StaleSettlement,
    StoreBusy,
    StoreFailing,
    StoreRecovered,
    StoreTimeout,
    Supervisor,
)
from jobs_async.core.store import PRIMITIVES
from jobs_async.runtime.outage import TOLD_AFTER
from jobs_async.runtime.patience import STORE_SECONDS
from jobs_async.testing.faults import Fault, FaultyStore, Plan
from tests.runtime.support import World, now, virtual

AWAY = Fault(error=StoreBusy("away"))
EVERYTHING = frozenset(PRIMITIVES)
MAX_PAUSE = 30.0
"""Seconds after which, at the latest, a store that was away is asked again."""


def on(primitives: Collection[str], fault: Fault = AWAY) -> Plan:
    """A fault in every call of some primitives."""
    return lambda _call, primitive: fault if primitive in primitives else None


class Once:
    """A fault in the next call of one primitive; when it was met."""

    def __init__(self, primitive: str, fault: Fault) -> None:
        self._primitive = primitive
        self._fault = fault
        self.met_at: list[float] = []

    def __call__(self, _call: int, primitive: str) -> Fault | None:
        if self.met_at or primitive != self._primitive:
            return None
        self.met_at.append(now())
        return self._fault


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(1000):
        while not fact():
            await asyncio.sleep(0.1)


def outages(world: World) -> list[str]:
    return [event.type for event in world.seen.events if isinstance(event, StoreFailing | StoreRecovered)]


# --- what is told ---


@virtual
async def test_an_outage_is_told_once_after_a_second_and_once_when_it_is_over(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store):
        await asyncio.sleep(5)
        store.plan, began = on(["fetch"]), now()
        failing = await world.seen.wait(StoreFailing)
        assert TOLD_AFTER <= now() - began <= TOLD_AFTER + 4
        assert "away" in failing.error_msg
        assert "default" in failing.error_msg, "it says what was asked"
        await asyncio.sleep(100)
        store.calm()
        ended = now()
        recovered = await world.seen.wait(StoreRecovered)
        assert now() - ended <= MAX_PAUSE
        assert recovered.seconds == pytest.approx(now() - began, abs=1.5)
        await asyncio.sleep(100)
    assert outages(world) == ["store_failing", "store_recovered"]


@virtual
async def test_a_hiccup_is_no_outage(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store) as jobs:

        @jobs.worker
        async def work(n: int) -> int:
            await asyncio.sleep(0.3)
            return n

        for n in range(5):
            job = await work.enqueue(n)
            store.plan = on(EVERYTHING - {"insert", "select"})
            await asyncio.sleep(TOLD_AFTER * 0.6)
            store.calm()
            assert await jobs.result(job) == n
            await asyncio.sleep(20)
    assert outages(world) == []


@virtual
async def test_all_that_fails_at_the_same_time_is_one_outage_and_the_next_is_another(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store, queues={f"q{n}": 3 for n in range(5)}, lease=1000) as jobs:

        @jobs.worker
        async def work(n: int) -> int:
            await asyncio.sleep(n + 1)
            return n

        for round_ in (1, 2):
            stored = [await work.options(queue=f"q{n % 5}").enqueue(n) for n in range(15)]
            await world.seen.wait(JobStarted, count=15 * round_)
            store.plan = on(EVERYTHING)
            await asyncio.sleep(60)
            assert len(world.seen.of(JobCompleted)) == 15 * (round_ - 1)
            store.calm()
            assert [await jobs.result(job) for job in stored] == list(range(15))
            await world.seen.wait(StoreRecovered, count=round_)
            assert outages(world) == ["store_failing", "store_recovered"] * round_
        assert {(job.attempt, job.rescues) for job in await jobs.find()} == {(1, 0)}


@virtual
async def test_it_is_over_only_when_all_of_it_works_again(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store) as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(1)

        await work.enqueue()
        await world.seen.wait(JobStarted)
        store.plan = on(["apply", "fetch"])
        await world.seen.wait(StoreFailing)
        store.plan = on(["apply"])
        await asyncio.sleep(60)
        assert outages(world) == ["store_failing"]
        store.calm()
        await world.seen.wait(StoreRecovered)
    assert outages(world) == ["store_failing", "store_recovered"]


@virtual
async def test_the_text_of_a_foreign_error_is_not_shown_in_events(world: World) -> None:
    """It may hold a password; the log has it."""
    store = FaultyStore(world.store, on(["fetch"], Fault(error=ConnectionError("postgres://app:s3cret@db"))))
    async with world.supervisor(store):
        failing = await world.seen.wait(StoreFailing)
    assert "ConnectionError" in failing.error_msg
    assert "s3cret" not in failing.error_msg


@virtual
async def test_a_store_that_never_answers_is_an_outage_too(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store):
        await asyncio.sleep(5)
        store.plan, began = on(["fetch"], Fault(hangs=True)), now()
        await world.seen.wait(StoreFailing)
        assert now() - began <= 2 * STORE_SECONDS + 3
        store.calm()
        await world.seen.wait(StoreRecovered)
    assert outages(world) == ["store_failing", "store_recovered"]


# --- a call that never comes back ---


class Fleet:
    """A Supervisor of two queues whose jobs count their runs, over a store one of whose answers never comes."""

    def __init__(self, world: World) -> None:
        self.store = FaultyStore(world.store)
        self.jobs = world.supervisor(self.store, queues={"default": 2, "other": 2})
        self.runs: Counter[int] = Counter()
        self.jobs.register_worker("work", self._work)

    async def _work(self, _args: object, ctx: Any) -> str:
        self.runs[ctx.job.id] += 1
        await asyncio.sleep(1)
        return "done"

    async def enqueue(self) -> list[Job[Any]]:
        return [await self.jobs.enqueue("work", queue=queue) for queue in ("default", "other") * 3]


@pytest.mark.parametrize("done", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("primitive", ["fetch", "apply", "beat", "select", "queues", "nodes"])
def test_row_14_a_call_that_never_answers_is_given_up_and_all_goes_on(primitive: str, done: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        fleet = Fleet(world)
        async with fleet.jobs as jobs:
            await asyncio.sleep(3)
            fleet.store.plan = once = Once(primitive, Fault(hangs=True, done=done))
            stored = await fleet.enqueue()
            strange = await jobs.enqueue("nobody knows it", max_attempts=1)
            await until(lambda: bool(once.met_at))
            ended = [await jobs.wait(job) for job in [*stored, strange]]
            assert now() - once.met_at[0] <= 4 * STORE_SECONDS
            assert [job.state for job in ended] == [JobState.completed] * 6 + [ended[-1].state]
            assert ended[-1].state is JobState.discarded
            assert {(job.attempt, job.rescues) for job in ended} == {(1, 0)}
            assert fleet.runs == Counter([job.id for job in stored]), "each ran once"
            await asyncio.sleep(5 * STORE_SECONDS)
            assert [node.alive for node in await world.store.nodes()] == [True]
            assert await jobs.result(await jobs.enqueue("work")) == "done"
        assert not world.seen.of(LeaseLost) + world.seen.of(StaleSettlement)
        assert len(world.seen.of(JobCompleted)) == 7

    scenario()


@virtual
async def test_row_14_while_one_queue_waits_for_its_claim_the_other_goes_on(world: World) -> None:
    fleet = Fleet(world)
    async with fleet.jobs as jobs:
        fleet.store.plan = once = Once("fetch", Fault(hangs=True))
        await until(lambda: bool(once.met_at))
        began, stored = now(), await fleet.enqueue()
        _, pending = await asyncio.wait(
            [asyncio.get_running_loop().create_task(jobs.wait(job)) for job in stored], timeout=5
        )
        assert len(pending) == 3
        assert len({job.queue for job in await jobs.find() if job.state is JobState.completed}) == 1
        await asyncio.wait(pending)
        assert now() - began <= STORE_SECONDS + 4


@virtual
async def test_row_14_a_claim_whose_answer_never_comes_is_handed_back_untouched(world: World) -> None:
    fleet = Fleet(world)
    async with fleet.jobs as jobs:
        await jobs.pause_queue("default")
        job = await jobs.enqueue("work")
        fleet.store.plan = once = Once("fetch", Fault(hangs=True, done=True))
        await jobs.resume_queue("default")
        await until(lambda: bool(once.met_at))
        assert (await world.store.get(job.id)).state is JobState.executing
        ended = await jobs.wait(job)
        assert now() - once.met_at[0] <= 60
        assert (ended.state, ended.attempt, ended.claim > 1, ended.errors) == (JobState.completed, 1, True, ())
        assert fleet.runs == {job.id: 1}
    assert not world.seen.of(JobInterrupted), "nothing of it was ever told"


@virtual
async def test_row_14_a_settlement_that_was_written_but_never_answered_counts_once(world: World) -> None:
    fleet = Fleet(world)
    async with fleet.jobs as jobs:
        job = await jobs.enqueue("work")
        await world.seen.wait(JobStarted)
        fleet.store.plan = once = Once("apply", Fault(hangs=True, done=True))
        completed = await world.seen.wait(JobCompleted, job)
        assert now() - once.met_at[0] <= STORE_SECONDS + 1
        assert completed.job.result == "done"
        await asyncio.sleep(60)
        assert (await jobs.get(job.id)).attempt == 1
    assert len(world.seen.of(JobCompleted)) == 1
    assert not world.seen.of(StaleSettlement)


@virtual
async def test_row_14_a_start_that_gets_no_answer_starts_nothing_and_may_be_tried_again(world: World) -> None:
    store = FaultyStore(world.store, on(["beat"], Fault(hangs=True)))
    jobs = world.supervisor(store)
    with pytest.raises(StoreTimeout):
        await jobs.start()
    assert now() <= STORE_SECONDS + 1
    assert not jobs.is_running
    store.calm()
    async with jobs:
        assert jobs.is_running


# --- what the application asks ---

Call = Callable[[Supervisor], Any]
CALLS: dict[str, Call] = {
    "enqueue": lambda jobs: jobs.enqueue("work"),
    "enqueue many": lambda jobs: jobs.enqueue_many([Draft("work"), Draft("work")]),
    "get": lambda jobs: jobs.get(1),
    "find": lambda jobs: jobs.find(),
    "counts": lambda jobs: jobs.counts(),
    "wait": lambda jobs: jobs.wait(1),
    "cancel": lambda jobs: jobs.cancel(1),
    "retry": lambda jobs: jobs.retry(1),
    "edit": lambda jobs: jobs.edit(1, priority=5),
    "delete": lambda jobs: jobs.delete(1),
    "pause": lambda jobs: jobs.pause_queue("default"),
    "resume": lambda jobs: jobs.resume_queue("default"),
    "scale": lambda jobs: jobs.scale_queue("default", 5),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_row_14_what_the_application_asks_of_a_store_that_hangs_raises_store_timeout(call: Call) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(FaultyStore(world.store, on(EVERYTHING, Fault(hangs=True))), queues={})
        await world.store.enqueue("work", {}, JobOpts(delay=1000))
        with pytest.raises(StoreTimeout, match="did not answer within 11 seconds"):
            await call(jobs)
        assert now() == pytest.approx(STORE_SECONDS)

    scenario()


@virtual
async def test_row_14_a_wait_with_a_timeout_ends_in_time_though_the_store_hangs(world: World) -> None:
    store = FaultyStore(world.store)
    jobs = world.supervisor(store, queues={})
    job = await jobs.enqueue("work")
    store.plan = on(EVERYTHING, Fault(hangs=True))
    with pytest.raises(TimeoutError):
        await jobs.wait(job, timeout=5)
    assert now() <= 6


@virtual
async def test_row_54_an_enqueue_that_timed_out_may_come_through_and_then_runs_once(world: World) -> None:
    store = FaultyStore(world.store)
    async with world.supervisor(store) as jobs:
        runs: list[str] = []

        @jobs.worker
        async def work() -> None:
            runs.append("ran")

        store.plan = once = Once("insert", Fault(before=20, goes_on=True))
        with pytest.raises(StoreTimeout):
            await work.options(idempotency_key="once").enqueue()
        await asyncio.sleep(10)
        again = await work.options(idempotency_key="once").enqueue()
        assert now() - once.met_at[0] > 20
        assert again.duplicate
        await jobs.wait(again)
        assert runs == ["ran"]
