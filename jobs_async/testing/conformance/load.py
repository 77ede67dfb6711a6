"""Crowds: many tasks at once, big batches, callers that give up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import UniqueConflict
from jobs_async.core.job import FINAL, LIVE, Job, JobState
from jobs_async.core.lifecycle import decide
from jobs_async.core.options import UniqueStrategy
from jobs_async.core.outcome import Completed
from jobs_async.core.store import JobQuery, Store, Tick
from jobs_async.testing.conformance.scene import dump, ids, new, running

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock

CROWD = 50


async def fifty_enqueues_of_one_key_make_one_job(store: Store, clock: FakeClock) -> None:
    """All at once, one is new and the others are told so."""
    draft = new(unique_key="k")
    answers = [jobs[0] for jobs in await asyncio.gather(*(store.insert([draft]) for _ in range(CROWD)))]
    assert len({job.id for job in answers}) == 1
    assert sum(job.duplicate for job in answers) == CROWD - 1
    assert len(await dump(store)) == 1


async def fifty_replacements_leave_one_live_job(store: Store, clock: FakeClock) -> None:
    """Each takes the key over from another, and the last one keeps it."""
    draft = new(unique_key="k", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
    answers = [jobs[0] for jobs in await asyncio.gather(*(store.insert([draft]) for _ in range(CROWD)))]
    assert len({job.id for job in answers}) == CROWD
    states = [job.state for job in await dump(store)]
    assert states == [JobState.cancelled] * (CROWD - 1) + [JobState.available]


async def fifty_rejections_admit_one(store: Store, clock: FakeClock) -> None:
    """One is stored; each of the others raises, and names it."""
    draft = new(unique_key="k", unique_strategy=UniqueStrategy.REJECT, idempotency_key=None)
    answers = await asyncio.gather(*(store.insert([draft]) for _ in range(CROWD)), return_exceptions=True)
    [job] = await dump(store)
    assert [answer for answer in answers if not isinstance(answer, BaseException)] == [[job]]
    conflicts = [answer for answer in answers if isinstance(answer, UniqueConflict)]
    assert [conflict.job.id for conflict in conflicts] == [job.id] * (CROWD - 1)


async def fifty_inserts_of_one_tick_make_one_job(store: Store, clock: FakeClock) -> None:
    """Whoever comes first spends the tick."""
    tick = Tick("t", clock.now())
    answers = await asyncio.gather(*(store.insert([new()], tick=tick) for _ in range(CROWD)))
    assert sorted(len(jobs) for jobs in answers) == [0] * (CROWD - 1) + [1]
    assert len(await dump(store)) == 1


async def fifty_pauses_are_one_change(store: Store, clock: FakeClock) -> None:
    """Only the call that made the difference is told that it did."""
    answers = await asyncio.gather(*(store.set_queue("default", paused=True) for _ in range(CROWD)))
    assert sorted(answers) == [False] * (CROWD - 1) + [True]


async def neighbours_of_a_refused_insert_are_stored(store: Store, clock: FakeClock) -> None:
    """A store that gathers concurrent calls into one transaction lets an error reach its own caller only."""
    await store.insert([new(unique_key="k")])
    reject = new(unique_key="k", unique_strategy=UniqueStrategy.REJECT)
    batches = [[new(f"w{n}"), reject] if n % 3 == 0 else [new(f"w{n}"), new(f"w{n}")] for n in range(12)]
    answers = await asyncio.gather(*(store.insert(batch) for batch in batches), return_exceptions=True)
    assert [isinstance(answer, UniqueConflict) for answer in answers] == [n % 3 == 0 for n in range(12)]
    stored = sorted(job.worker for job in (await dump(store))[1:])
    assert stored == sorted(batch[0].worker for batch in batches if reject not in batch for _ in batch)


async def concurrent_claims_share_no_job(store: Store, clock: FakeClock) -> None:
    """Each job is handed out once, and none is forgotten."""
    jobs = await store.insert([new(priority=number % 4) for number in range(60)])
    answers = await asyncio.gather(*(store.fetch("default", 4, node=None) for _ in range(20)))
    claims = [job for fetched in answers for job in fetched.jobs]
    assert sorted(ids(claims)) == ids(jobs)
    assert all(len(fetched.jobs) <= 4 for fetched in answers)
    assert {job.claim for job in await dump(store)} == {1}


async def concurrent_settlements_of_one_claim_count_once(store: Store, clock: FakeClock) -> None:
    """One of them is the truth; the others are stale."""
    job = await running(store)
    steps = [decide(job, Completed(str(number))) for number in range(CROWD)]
    answers = await asyncio.gather(*(store.apply([step]) for step in steps))
    [truth] = [answer for [answer] in answers if answer is not None]
    assert await dump(store) == [truth]


async def a_thousand_rows_are_one_batch(store: Store, clock: FakeClock) -> None:
    """Insert, claim, settle, read and purge take a page of the greatest size."""
    jobs = await store.insert([new(str(number), delay=number % 2) for number in range(1000)])
    clock.advance(1)
    claimed = (await store.fetch("default", 1000, node=None)).jobs
    assert ids(claimed) == ids(jobs)
    done = await store.apply([decide(job, Completed(job.worker)) for job in claimed])
    assert [job and job.result for job in done] == list(range(1000))
    assert await store.select(JobQuery(ids=ids(jobs), newest_first=False, limit=1000)) == done
    clock.advance(1)
    assert await store.purge(FINAL, 0, 999) == 999
    [last] = await dump(store)
    assert await store.delete(ids(jobs)) == 1
    assert last.state is JobState.completed


async def a_caller_that_gives_up_leaves_all_or_nothing(store: Store, clock: FakeClock) -> None:
    """A cancelled call has happened or has not; the store goes on working either way."""
    loop = asyncio.get_running_loop()

    async def given_up(number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop.call_soon(task.cancel)
        await store.insert([new(f"w{number}"), new(f"w{number}")])

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(given_up(number)) for number in range(20)]
    assert all(task.done() for task in tasks)
    after = await store.insert([new("after")])
    kept: dict[str, list[Job[Any]]] = {}
    for job in await dump(store):
        kept.setdefault(job.worker, []).append(job)
    assert kept.pop("after") == after
    assert {len(jobs) for jobs in kept.values()} <= {2}
    assert len(await store.select(JobQuery(states=LIVE))) == 2 * len(kept) + 1
