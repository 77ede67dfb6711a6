"""Ended jobs are kept for as long as was said, exactly; where nothing was said, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import pytest

from jobs_async import JobState, MemoryStore, OptionError, StoreBusy, Supervisor
from jobs_async.core.limits import Seconds
from jobs_async.core.store import MAX_PAGE
from jobs_async.runtime.engine import PRUNE_EVERY
from jobs_async.testing.faults import Fault, FaultyStore
from tests.runtime.support import World, now, virtual

HOUR, DAY, YEARS = 3600.0, 86_400.0, 10 * 365 * 86_400.0
COMPLETED, DISCARDED, CANCELLED = JobState.completed, JobState.discarded, JobState.cancelled
CALM: dict[str, Any] = {"heartbeat": HOUR, "lease": 4 * HOUR, "poll_interval": HOUR, "rescue_interval": HOUR}
"""A Supervisor that does little beside what is tested, for days."""
LOOK = PRUNE_EVERY + 1
"""Seconds in which every Supervisor looks once."""


class Counting(MemoryStore):
    """Writes down what was purged: when, of which states, how many at most, and how many there were."""

    def __init__(self, world: World) -> None:
        super().__init__(None, clock=world.clock)
        self.purges: list[tuple[float, tuple[JobState, ...], int, int]] = []

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        chosen = tuple(states)
        found = await super().purge(chosen, older_than, limit)
        self.purges.append((now(), chosen, limit, found))
        return found


async def end(store: MemoryStore, state: JobState = COMPLETED, count: int = 1) -> None:
    """Jobs that end now."""
    for _ in range(count):
        job = await store.enqueue("work")
        claimed = await store.claim(job.queue)
        assert claimed is not None
        match state:
            case JobState.completed:
                await store.complete(claimed)
            case JobState.discarded:
                await store.discard(claimed, "no more")
            case _:
                await store.fail(claimed, "later")
                await Supervisor(store, queues={}).cancel(job)


async def counts(store: MemoryStore) -> dict[str, int]:
    return {state.name: count for (_, state), count in sorted((await store.tally()).items())}


@virtual
async def test_each_state_is_kept_for_its_own_time_and_what_is_not_named_for_ever(world: World) -> None:
    for state in (COMPLETED, DISCARDED, CANCELLED):
        await end(world.store, state, 3)
    async with world.supervisor(retention={COMPLETED: HOUR, DISCARDED: timedelta(days=1)}, **CALM):
        await asyncio.sleep(HOUR - 1)
        assert await counts(world.store) == {"completed": 3, "discarded": 3, "cancelled": 3}
        await asyncio.sleep(LOOK)
        assert await counts(world.store) == {"discarded": 3, "cancelled": 3}
        await asyncio.sleep(DAY - HOUR)
        assert await counts(world.store) == {"cancelled": 3}
        await asyncio.sleep(DAY)
        assert await counts(world.store) == {"cancelled": 3}


@virtual
async def test_one_duration_is_for_all_of_them(world: World) -> None:
    for state in (COMPLETED, DISCARDED, CANCELLED):
        await end(world.store, state)
    async with world.supervisor(retention=timedelta(hours=1)):
        await asyncio.sleep(HOUR - 1)
        assert await counts(world.store) == {"completed": 1, "discarded": 1, "cancelled": 1}
        await asyncio.sleep(LOOK)
        assert await counts(world.store) == {}


@pytest.mark.parametrize(("seconds", "left"), [(HOUR, 1), (HOUR + 1e-6, 0)])
def test_it_is_exact_to_the_microsecond(seconds: float, left: int) -> None:
    @virtual
    async def scenario(world: World) -> None:
        await end(world.store)
        await asyncio.sleep(seconds)
        async with world.supervisor(retention=HOUR):
            await asyncio.sleep(1)
            assert (await counts(world.store)).get("completed", 0) == left

    scenario()


@virtual
async def test_it_needs_no_queues(world: World) -> None:
    """A process that only enqueues, or only operates, may be the one that tidies up."""
    await end(world.store)
    async with world.supervisor(queues={}, retention=HOUR):
        await asyncio.sleep(HOUR + LOOK)
        assert await counts(world.store) == {}


@virtual
async def test_by_default_everything_is_kept(world: World) -> None:
    store = Counting(world)
    await end(store)
    async with world.supervisor(store, **CALM):
        await asyncio.sleep(3 * DAY)
        assert await counts(store) == {"completed": 1}
    assert store.purges == []


@virtual
async def test_live_jobs_are_never_touched_however_old(world: World) -> None:
    async with world.supervisor(retention=1, **CALM) as jobs:
        held = asyncio.Event()

        @jobs.worker(timeout_seconds=None)
        async def work() -> None:
            await held.wait()

        await work.enqueue()
        await work.options(delay=YEARS).enqueue()
        await jobs.pause_queue("side")
        await work.options(queue="side").enqueue()
        failed = await world.store.enqueue("work", opts=work.options(queue="other").draft().opts)
        claimed = await world.store.claim("other")
        assert claimed is not None
        await world.store.fail(claimed, "later", retry_in=YEARS)
        await asyncio.sleep(3 * DAY)
        assert await counts(world.store) == {"available": 1, "executing": 1, "retryable": 1, "scheduled": 1}
        assert (await jobs.get(failed)).state is JobState.retryable
        held.set()


@virtual
async def test_batches_are_small_and_give_way_in_between(world: World) -> None:
    store = Counting(world)
    await end(store, COMPLETED, 2 * MAX_PAGE + 500)
    await asyncio.sleep(1)
    async with world.supervisor(store, retention={COMPLETED: 0.5}) as jobs:
        began = now()

        @jobs.worker
        async def work() -> None: ...

        await jobs.wait(await work.enqueue())
        assert len(store.purges) < 3, "a job had its turn meanwhile"
        await asyncio.sleep(1)
        assert [(limit, found) for _, _, limit, found in store.purges] == [(1000, 1000), (1000, 1000), (1000, 500)]
        assert len({at for at, *_ in store.purges}) == 3, "not in one go"
        assert now() - began < PRUNE_EVERY / 2
        assert await counts(store) == {"completed": 1}
        await asyncio.sleep(LOOK)
        assert await counts(store) == {}


@virtual
async def test_several_nodes_remove_each_job_once(world: World) -> None:
    store = Counting(world)
    await end(store, DISCARDED, 2500)
    await asyncio.sleep(HOUR + 1)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(world.supervisor(store, retention={DISCARDED: HOUR}))
        await asyncio.sleep(LOOK)
    assert sum(found for *_, found in store.purges) == 2500
    assert await counts(store) == {}


@virtual
async def test_a_stop_does_not_wait_for_the_last_batch(world: World) -> None:
    store = Counting(world)
    await end(store, COMPLETED, 3 * MAX_PAGE)
    await asyncio.sleep(1)
    jobs = world.supervisor(store, retention=0.5)
    await jobs.start()
    while not store.purges:
        await asyncio.sleep(0)
    asked = now()
    assert (await jobs.stop()).is_clean
    assert now() - asked < 0.1
    assert len(store.purges) == 1
    assert await counts(store) == {"completed": 2 * MAX_PAGE}


@virtual
async def test_a_stop_is_prompt_where_the_store_does_not_answer(world: World) -> None:
    store = FaultyStore(world.store, lambda _, primitive: Fault(hangs=True) if primitive == "purge" else None)
    jobs = world.supervisor(store, retention=1)
    await jobs.start()
    await asyncio.sleep(1)
    asked = now()
    await jobs.stop()
    assert now() - asked < 3


@virtual
async def test_an_outage_is_survived_and_what_is_over_is_removed_soon_after(world: World) -> None:
    store = FaultyStore(
        world.store, lambda _, primitive: Fault(error=StoreBusy("away")) if primitive == "purge" else None
    )
    await end(world.store, COMPLETED, 5)
    await asyncio.sleep(1)
    async with world.supervisor(store, retention=0.5):
        await asyncio.sleep(10 * PRUNE_EVERY)
        assert await counts(world.store) == {"completed": 5}
        store.calm()
        await asyncio.sleep(LOOK)
        assert await counts(world.store) == {}


@pytest.mark.parametrize("state", [state for state in JobState if state not in (COMPLETED, DISCARDED, CANCELLED)])
def test_live_states_are_refused_by_name(state: JobState) -> None:
    with pytest.raises(OptionError, match=f"completed, discarded, cancelled; not for {state.name}"):
        Supervisor(retention={COMPLETED: 60, state: 60})


@pytest.mark.parametrize(
    "retention",
    [-1, float("nan"), float("inf"), "7d", True, {COMPLETED: -1}, {COMPLETED: None}, {"completed": 60}, [COMPLETED]],
)
def test_what_is_no_duration_is_refused(retention: Any) -> None:
    with pytest.raises(OptionError, match="retention"):
        Supervisor(retention=retention)
