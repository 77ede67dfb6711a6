"""What the memory store alone promises: whatever is refused was never there."""

from __future__ import annotations

from typing import Any

import pytest

from jobs_async.core.errors import JobsError, StoreFull, UniqueConflict
from jobs_async.core.job import Job, JobState
from jobs_async.core.options import NewJob, UniqueStrategy
from jobs_async.core.store import JobQuery
from jobs_async.stores.memory import MemoryStore
from jobs_async.testing import FakeClock

ROOM = 5
HELD = NewJob("work", "{}", unique_key="held")
REPLACING = NewJob("work", "{}", unique_key="held", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
REFUSED = NewJob("work", "{}", unique_key="other", unique_strategy=UniqueStrategy.REJECT)
KEYED = NewJob("work", "{}", idempotency_key="once")
BATCHES: dict[str, tuple[list[NewJob], type[JobsError]]] = {
    "a conflict": ([KEYED, REPLACING, REPLACING, REFUSED], UniqueConflict),
    "no room": ([KEYED, REPLACING, REPLACING, *[NewJob("work", "{}")] * ROOM], StoreFull),
}


async def filled(clock: FakeClock) -> MemoryStore:
    """One that has ended, one in the middle whose key will be taken over, one that holds the key that is refused."""
    store = MemoryStore(max_jobs=ROOM, clock=clock)
    await store.insert([NewJob("work", "{}"), HELD, NewJob("work", "{}", unique_key="other", priority=-1)])
    first = await store.claim("default")
    assert first is not None
    await store.complete(first)
    await store.insert([NewJob("work", "{}", unique_key="other", delay=60.0)])
    return store


async def seen(store: MemoryStore) -> list[Any]:
    """All that there is to be seen, in the orders in which it is seen."""
    pages = [await store.select(JobQuery(newest_first=newest)) for newest in (True, False)]
    return [*pages, await store.tally()]


async def used_up(store: MemoryStore, clock: FakeClock) -> list[list[Job[Any]]]:
    """What it then does: which jobs stand in the way, which it hands out, and which it forgets first."""
    clock.advance(60)
    (twin,) = await store.insert([HELD])
    claimed = (await store.fetch("default", 10, node=None)).jobs
    for job in claimed:
        await store.complete(job)
    for _ in range(ROOM):
        await store.insert([NewJob("filler", "{}")])
        (filler,) = (await store.fetch("default", 1, node=None)).jobs
        await store.complete(filler)
    left = await store.select(JobQuery(states=[JobState.completed], worker="work"))
    return [[twin], list(claimed), left]


@pytest.mark.parametrize("why", BATCHES)
async def test_a_batch_that_is_refused_leaves_everything_as_it_was(why: str) -> None:
    batch, error = BATCHES[why]
    clock, other_clock = FakeClock(), FakeClock()
    store, untouched = await filled(clock), await filled(other_clock)
    before = await seen(store)
    with pytest.raises(error):
        await store.insert(batch)
    assert await seen(store) == before == await seen(untouched)
    assert await used_up(store, clock) == await used_up(untouched, other_clock)
