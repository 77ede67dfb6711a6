"""What an operator does to all jobs of a query at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from jobs_async import (
    Draft,
    Job,
    JobCancelled,
    JobEnqueued,
    JobNotFound,
    JobOpts,
    JobQuery,
    JobStarted,
    JobState,
    MemoryStore,
    OptionError,
    StoreBusy,
    Supervisor,
    current_context,
)
from jobs_async.core.lifecycle import Transition, cancel, rerun
from jobs_async.runtime.many import AT_ONCE
from jobs_async.testing.faults import Fault, FaultyStore
from jobs_async.testing.loop import BEGINNING
from tests.runtime.support import World, now, virtual

DEAD = JobQuery(states=[JobState.discarded])
ENDLESS = 10**6


async def enqueue(jobs: Supervisor, count: int, **options: Any) -> list[int]:
    drafts = [Draft[Any]("work", None, JobOpts(**options)) for _ in range(count)]
    return [job.id for job in await jobs.enqueue_many(drafts)]


async def bury(world: World, count: int, **options: Any) -> list[int]:
    """Dead letters."""
    buried = []
    for _ in range(count):
        job = await world.store.enqueue("work", None, JobOpts(**options))
        claimed = await world.store.claim("default")
        assert claimed is not None
        assert claimed.id == job.id
        await world.store.discard(claimed, "no more")
        buried.append(job.id)
    return buried


async def ids(world: World, state: JobState) -> list[int]:
    found, query = [], JobQuery(states=[state], newest_first=False, limit=1000)
    while page := await world.store.select(query):
        found += [job.id for job in page]
        query = replace(query, after=page[-1].id)
    return found


class Meddler(MemoryStore):
    """A store in which somebody else is quicker, once: between a page that is read and what follows from it."""

    meddle: Callable[[list[Job[Any]]], Sequence[Transition]] | None = None
    pages: list[JobQuery]

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        page = await super().select(query)
        self.pages = [*getattr(self, "pages", []), query]
        if self.meddle is not None and page:
            meddle, self.meddle = self.meddle, None
            await self.apply(meddle(page))
        return page


# --- pages ---


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_thousands_are_changed_page_by_page_whatever_the_order_and_limit(newest_first: bool, limit: int) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = Meddler(max_jobs=None, clock=world.clock)
        jobs, query = world.supervisor(store, queues={}), JobQuery(newest_first=newest_first, limit=limit)
        await enqueue(jobs, 2500, delay=ENDLESS)
        assert await jobs.cancel_all(query) == 2500
        assert await jobs.cancel_all(query) == 0
        assert await jobs.retry_all(query) == 2500
        assert await jobs.retry_all(query) == 0
        assert await jobs.delete_all(query) == 2500
        assert await jobs.counts() == {}
        assert {page.limit for page in store.pages} == {AT_ONCE}
        assert len(store.pages) == 5 * (2500 // AT_ONCE + 1), "each is seen once"

    scenario()


@pytest.mark.parametrize("newest_first", [True, False])
def test_it_begins_after_the_job_that_is_named(newest_first: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={})
        stored = await enqueue(jobs, 500)
        middle = stored[200]
        meant = stored[:200] if newest_first else stored[201:]
        assert await jobs.cancel_all(JobQuery(after=middle, newest_first=newest_first)) == len(meant)
        assert await ids(world, JobState.cancelled) == meant

    scenario()


@virtual
async def test_every_condition_of_the_query_counts(world: World) -> None:
    jobs = world.supervisor(queues={})
    await enqueue(jobs, 150, queue="other")
    await enqueue(jobs, 150, tags=["x"])
    meant = await enqueue(jobs, 150, queue="other", tags=["x"])
    assert await jobs.cancel_all(JobQuery(queue="other", tags=["x"])) == 150
    assert await ids(world, JobState.cancelled) == meant
    assert await jobs.retry_all(JobQuery(ids=meant[:3])) == 3
    assert await jobs.delete_all(JobQuery(states=[JobState.cancelled])) == 147
    assert len(await ids(world, JobState.available)) == 303


@virtual
async def test_jobs_that_cannot_move_are_left_alone(world: World) -> None:
    jobs = world.supervisor(queues={})
    (dead,) = await bury(world, 1)
    (running, waiting), (later,) = await enqueue(jobs, 2), await enqueue(jobs, 1, delay=60)
    assert await world.store.claim("default") is not None
    assert await jobs.retry_all(JobQuery()) == 2, "the dead one and the one that waits for its time"
    assert {job.id: job.state for job in await jobs.find()} == {
        dead: JobState.available,
        running: JobState.executing,
        waiting: JobState.available,
        later: JobState.available,
    }
    assert await jobs.delete_all(JobQuery()) == 3
    assert [job.id for job in await jobs.find()] == [running]
    assert await jobs.cancel_all(JobQuery()) == 1
    assert (await jobs.get(running)).cancel_requested


@virtual
async def test_what_has_been_done_is_run_again_only_where_it_is_asked_for(world: World) -> None:
    jobs = world.supervisor(queues={})
    (done,) = await enqueue(jobs, 1)
    claimed = await world.store.claim("default")
    assert claimed is not None
    await world.store.complete(claimed)
    (dead,) = await bury(world, 1)
    assert await jobs.retry_all(JobQuery(worker="work")) == 1
    assert (await ids(world, JobState.completed), await ids(world, JobState.available)) == ([done], [dead])
    assert await jobs.retry_all(JobQuery(states=[JobState.completed])) == 1
    assert await ids(world, JobState.available) == [done, dead]


@virtual
async def test_a_running_job_is_asked_to_end_once(world: World) -> None:
    jobs = world.supervisor(queues={})
    await enqueue(jobs, 1)
    assert await world.store.claim("default") is not None
    assert [await jobs.cancel_all(JobQuery()) for _ in range(3)] == [1, 0, 0]


# --- races ---


@virtual
async def test_jobs_that_move_at_the_same_moment_are_left_alone(world: World) -> None:
    store = Meddler(clock=world.clock)
    jobs = world.supervisor(store, queues={})
    stored = await enqueue(jobs, 10)
    store.meddle = lambda page: [cancel(job) for job in page if job.id in stored[:4]]
    assert await jobs.cancel_all(JobQuery()) == 6
    store.meddle = lambda page: [rerun(job) for job in page if job.id in stored[:3]]
    assert await jobs.retry_all(JobQuery()) == 7


@pytest.mark.parametrize("newest_first", [True, False])
def test_of_dead_letters_with_one_unique_key_the_first_to_be_seen_comes_to_life(newest_first: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={})
        twins = await bury(world, 5, unique_key="k")
        others = await bury(world, 150)
        held = await bury(world, 3, unique_key="held")
        holder = await jobs.enqueue("work", unique_key="held")
        heir = max(twins) if newest_first else min(twins)
        assert await jobs.retry_all(replace(DEAD, newest_first=newest_first)) == 151
        assert await ids(world, JobState.available) == sorted([*others, heir, holder.id])
        assert await ids(world, JobState.discarded) == sorted({*twins, *held} - {heir})

    scenario()


# --- running jobs, events, waiters ---


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_running_jobs_are_asked_to_end(where: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor(queues={"default": 20}) as runner, world.supervisor(queues={}) as elsewhere:

            @runner.worker
            async def work() -> str:
                await current_context().cancelled.wait()
                return "as far as I got"

            running = await runner.enqueue_many([work.draft() for _ in range(20)])
            await world.seen.wait(JobStarted, count=20)
            waiting = await runner.enqueue_many([work.draft() for _ in range(5)])
            operator = runner if where == "here" else elsewhere
            assert await operator.cancel_all(JobQuery(worker="work")) == 25
            ended = [await elsewhere.wait(job) for job in (*running, *waiting)]
            assert {job.state for job in ended} == {JobState.cancelled}
            assert {job.result for job in ended[:20]} == {"as far as I got"}
            assert now() <= (0.2 if where == "here" else 5 + 1), "at once, or with the next beat"
            await world.seen.wait(JobCancelled, count=25)
            assert len(world.seen.of(JobStarted)) == 20

    scenario()


@virtual
async def test_who_waits_is_told_and_what_comes_to_life_is_run(world: World) -> None:
    async with world.supervisor() as jobs:
        jobs.register_worker("work", _idle)
        stored = await enqueue(jobs, 150, delay=ENDLESS)
        waiting = [asyncio.get_running_loop().create_task(jobs.wait(job)) for job in stored]
        await asyncio.sleep(0.01)
        await jobs.cancel_all(JobQuery())
        assert {(await task).state for task in waiting} == {JobState.cancelled}
        assert now() < 0.04, "told, not found by asking"
        await jobs.retry_all(JobQuery())
        assert {(await jobs.wait(job)).state for job in stored} == {JobState.completed}
        assert now() < 1, "without waiting for the next poll"


async def _idle(_args: object, _ctx: object) -> None:
    pass


@virtual
async def test_each_cancellation_is_told_of_once(world: World) -> None:
    jobs = world.supervisor(queues={})
    stored = await enqueue(jobs, 250)
    await jobs.cancel_all(JobQuery())
    await jobs.cancel_all(JobQuery())
    assert sorted(event.job.id for event in world.seen.of(JobCancelled)) == stored
    assert {event.error_msg for event in world.seen.of(JobCancelled)} == {"cancelled on request"}


# --- what goes wrong ---


@pytest.mark.parametrize("verb", ["cancel_all", "retry_all", "delete_all"])
def test_a_caller_that_is_cancelled_loses_nothing_of_the_page_under_way(verb: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        store = FaultyStore(world.store)
        jobs = world.supervisor(store, queues={})
        stored = await enqueue(jobs, 3 * AT_ONCE, delay=ENDLESS)
        primitive = "delete" if verb == "delete_all" else "apply"
        store.plan = lambda _, called: Fault(before=1) if called == primitive else None
        changing = asyncio.get_running_loop().create_task(getattr(jobs, verb)(JobQuery(newest_first=False)))
        await asyncio.sleep(1.5)
        changing.cancel()
        await asyncio.wait({changing})
        assert changing.cancelled()
        assert now() == 1.5, "at once"
        await asyncio.sleep(100)
        changed = stored[: 2 * AT_ONCE]
        assert await ids(world, JobState.scheduled) == stored[len(changed) :]
        if verb == "cancel_all":
            assert [event.job.id for event in world.seen.of(JobCancelled)] == changed
        if verb == "delete_all":
            with pytest.raises(JobNotFound):
                await jobs.get(changed[-1])

    scenario()


@virtual
async def test_an_error_of_the_store_reaches_the_caller_and_what_was_done_stays(world: World) -> None:
    store = FaultyStore(world.store)
    jobs = world.supervisor(store, queues={})
    stored = await enqueue(jobs, 3 * AT_ONCE)
    before = store.calls
    store.plan = lambda call, _: Fault(error=StoreBusy("away")) if call == before + 4 else None  # the second write
    with pytest.raises(StoreBusy):
        await jobs.cancel_all(JobQuery(newest_first=False))
    assert await ids(world, JobState.cancelled) == stored[:AT_ONCE]
    assert await jobs.cancel_all(JobQuery()) == 2 * AT_ONCE


@pytest.mark.parametrize("verb", ["cancel_all", "retry_all", "delete_all"])
@pytest.mark.parametrize("given", [None, 7, [7], "work", {"states": []}])
def test_which_jobs_are_meant_is_said_by_a_query(verb: str, given: object) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={})
        await enqueue(jobs, 1)
        with pytest.raises(OptionError, match="JobQuery"):
            await getattr(jobs, verb)(given)
        assert len(await ids(world, JobState.available)) == 1

    scenario()


# --- dead letters from end to end ---


@virtual
async def test_dead_letters_newest_first_and_redriven_one_many_and_all_that_match(world: World) -> None:
    broken = {"TimeoutError", "KeyError"}
    async with world.supervisor(queues={"default": 1}) as jobs:

        @jobs.worker(max_attempts=1)
        async def resize(error: str) -> str:
            if error in broken:
                raise {"TimeoutError": TimeoutError, "KeyError": KeyError}[error](error)
            return "done"

        @jobs.worker(max_attempts=1)
        async def mail() -> None:
            raise TimeoutError("no server")

        early = [await resize.enqueue(error) for error in ("TimeoutError", "KeyError", "TimeoutError")]
        await jobs.wait(early[-1])
        await asyncio.sleep(3600)
        late = [await resize.enqueue("TimeoutError"), await resize.enqueue("TimeoutError"), await mail.enqueue()]
        await jobs.wait(late[-1])

        page = await jobs.find(replace(DEAD, limit=4))
        rest = await jobs.find(replace(DEAD, limit=4, after=page[-1].id))
        assert [job.id for job in (*page, *rest)] == [job.id for job in reversed([*early, *late])]

        broken.clear()
        assert (await jobs.retry(early[0])).state is JobState.available
        assert await jobs.result(early[0]) == "done"
        assert await jobs.retry_all(JobQuery(ids=[early[1].id, 12345])) == 1
        assert await jobs.result(early[1]) == "done"
        since = BEGINNING + timedelta(seconds=1800)
        assert await jobs.retry_all(replace(DEAD, worker="resize", error="TimeoutError", ended_since=since)) == 2
        assert [await jobs.result(job) for job in late[:2]] == ["done", "done"]
        assert [job.id for job in await jobs.find(DEAD)] == [late[2].id, early[2].id]
        assert len((await jobs.get(late[0])).errors) == 1, "what went wrong stays on record"
        assert await jobs.delete_all(DEAD) == 2
        assert len(world.seen.of(JobEnqueued)) == 6


@virtual
async def test_what_comes_back_to_life_at_the_same_moment_is_not_deleted(world: World) -> None:
    store = Meddler(clock=world.clock)
    jobs = world.supervisor(store, queues={})
    stored = await enqueue(jobs, 10)
    await jobs.cancel_all(JobQuery())
    store.meddle = lambda page: [rerun(job) for job in page if job.id in stored[:3]]
    assert await jobs.delete_all(JobQuery(states=[JobState.cancelled])) == 7
    assert [job.id for job in await jobs.find(JobQuery(newest_first=False))] == stored[:3]
