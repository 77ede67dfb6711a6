"""The source's verbs, as a store inherits them or makes them faster."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from jobs_async.core.errors import ArgsError, JobNotFound, OptionError, UniqueConflict
from jobs_async.core.job import JobState
from jobs_async.core.options import JobOpts, UniqueStrategy
from jobs_async.core.outcome import Failed
from jobs_async.core.store import Store, validate_store
from jobs_async.testing.conformance.scene import BOOM, ELSEWHERE, ids, in_state, new, raised, running, settled, stored

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock


async def a_store_has_every_primitive(store: Store, clock: FakeClock) -> None:
    """Each is there, and async."""
    assert validate_store(store) is store


async def opening_and_closing_twice_is_harmless(store: Store, clock: FakeClock) -> None:
    """An open store stays as it is; a closed one stays closed."""
    job = await store.enqueue("work")
    await store.open()
    assert store.is_open
    assert await store.get(job.id) == job
    await store.close()
    await store.close()


async def enqueue_and_get(store: Store, clock: FakeClock) -> None:
    """One job by its worker's name; options are checked before anything is written."""
    opts = JobOpts(queue="mail", priority=-1, delay=5, tags=["a"], meta={"k": 1}, unique_key="u")
    job = await store.enqueue("send", {"to": "a@b.c"}, opts)
    assert (job.worker, job.args, job.queue, job.priority) == ("send", {"to": "a@b.c"}, "mail", -1)
    assert (job.state, job.tags, job.meta, job.max_attempts) == (JobState.scheduled, ("a",), {"k": 1}, 20)
    assert await store.get(job.id) == job
    assert (await store.enqueue("send", None, opts)).duplicate
    await raised(UniqueConflict, store.enqueue("x", 1, JobOpts(unique_key="u", unique_strategy=UniqueStrategy.REJECT)))
    await raised(OptionError, store.enqueue("", {}))
    await raised(ArgsError, store.enqueue("send", {"n": float("nan")}))
    assert dict(await store.tally()) == {("mail", JobState.scheduled): 1}


async def the_least_priority_is_claimed_first(store: Store, clock: FakeClock) -> None:
    """Priorities 5, 1, 1 come second, third, first; what is scheduled ahead comes when it is due, and last None."""
    jobs = [await store.enqueue("w", n, JobOpts(priority=priority)) for n, priority in enumerate((5, 1, 1))]
    ahead = await store.enqueue("w", 3, JobOpts(delay=60, priority=-9))
    due = await store.enqueue("w", 4, JobOpts(scheduled_at=clock.now() - timedelta(seconds=1), priority=9))
    claims = [await store.claim("default") for _ in range(5)]
    assert [job and job.id for job in claims] == [jobs[1].id, jobs[2].id, jobs[0].id, due.id, None]
    clock.advance(60)
    claimed = await store.claim("default")
    assert claimed is not None
    assert (claimed.id, claimed.node, claimed.attempt) == (ahead.id, None, 1)


async def settling_takes_the_claimed_job(store: Store, clock: FakeClock) -> None:
    """`complete`, `fail` and `discard` return the settled record once, and None where the claim no longer holds."""
    job = await running(store)
    done = await store.complete(job)
    assert done is not None
    assert (done.state, done.completed_at) == (JobState.completed, clock.now())
    assert [await store.complete(job), await store.fail(job, "late"), await store.discard(job, "late")] == [None] * 3
    assert await store.get(job.id) == done
    discarded = await store.discard(await running(store), "dead letter")
    assert discarded is not None
    assert (discarded.state, discarded.errors[-1].error) == (JobState.discarded, "dead letter")
    assert await store.get(discarded.id) == discarded


async def errors_are_kept_as_valid_text(store: Store, clock: FakeClock) -> None:
    """What a tool says may hold NUL and halves of characters: the record holds neither, as given and as stored."""
    for settle in (store.fail, store.discard):
        settled = await settle(await running(store), "a\0b\ud800c")
        assert settled is not None
        assert settled.errors[-1].error == "a\ufffdb?c"
        assert await stored(store, settled) == settled


async def failing_retries_until_attempts_are_spent(store: Store, clock: FakeClock) -> None:
    """After 15 seconds or as told; two attempts are exactly two runs, then the job is discarded."""
    failed = await store.fail(await running(store, max_attempts=2), "first")
    assert failed is not None
    assert (failed.state, failed.scheduled_at) == (JobState.retryable, clock.now() + timedelta(seconds=15))
    clock.advance(14)
    assert await store.claim("default") is None
    clock.advance(1)
    again = await store.claim("default")
    assert again is not None
    assert again.attempt == 2
    spent = await store.fail(again, "second", retry_in=1)
    assert spent is not None
    assert (spent.state, [error.error for error in spent.errors]) == (JobState.discarded, ["first", "second"])
    clock.advance(1000)
    assert await store.claim("default") is None
    soon = await store.fail(await running(store), "soon", retry_in=timedelta(seconds=2))
    assert soon is not None
    assert soon.scheduled_at == clock.now() + timedelta(seconds=2)
    at_once = await store.fail(await running(store), "at once", retry_in=0)
    assert at_once is not None
    assert ids((await store.fetch("default", 9, node=None)).jobs) == [at_once.id]


async def an_unknown_job_is_not_found(store: Store, clock: FakeClock) -> None:
    """JobNotFound, which names the id, from every verb that is about one job."""
    job = await running(store)
    await store.discard(job, "x")
    await store.delete([job.id])
    for call in (store.get(job.id), store.complete(job), store.fail(job, "x"), store.discard(job, "x")):
        assert (await raised(JobNotFound, call)).job_id == job.id


async def rescue_stuck_is_by_age(store: Store, clock: FakeClock) -> None:
    """Executing for 400 s with a timeout of 300 is freed, exactly 300 s is not; in every queue, by seconds or delta."""
    job, other = await running(store), await running(store, queue=ELSEWHERE)
    clock.advance(300)
    assert await store.rescue_stuck() == 0
    assert await store.rescue_stuck(300) == 0
    clock.advance(100)
    young = await running(store)
    assert await store.rescue_stuck(timedelta(seconds=300)) == 2
    for old in (job, other):
        freed = await stored(store, old)
        assert (freed.state, freed.attempt, freed.attempted_at) == (JobState.available, 1, old.attempted_at)
        assert freed.errors[-1].error == "rescued: job timed out"
    assert await stored(store, young) == young
    assert await store.rescue_stuck() == 0
    assert await store.complete(job) is None
    clock.advance(0.000001)
    assert await store.rescue_stuck(0) == 1


async def rescue_stuck_respects_max_attempts(store: Store, clock: FakeClock) -> None:
    """A job whose last attempt is stuck is discarded, not run once more."""
    job = await running(store, max_attempts=1)
    clock.advance(301)
    assert await store.rescue_stuck() == 1
    spent = await stored(store, job)
    assert (spent.state, spent.errors[-1].error) == (JobState.discarded, "rescued: job timed out")


async def counting_pausing_and_cleaning(store: Store, clock: FakeClock) -> None:
    """`count_by_state` is exact on both; pause and resume are harmless when repeated; only completed jobs go."""
    await store.insert([new(), new(), new(queue=ELSEWHERE)])
    counts = [await store.count_by_state(queue, JobState.available) for queue in ("default", ELSEWHERE, "none")]
    assert counts == [2, 1, 0]
    assert await store.count_by_state("default", JobState.executing) == 0
    assert not await store.is_paused("default")
    await store.resume_queue("default")
    for _ in range(2):
        await store.pause("default")
        assert await store.is_paused("default")
        assert await store.claim("default") is None
    assert not await store.is_paused(ELSEWHERE)
    for _ in range(2):
        await store.resume_queue("default")
        assert not await store.is_paused("default")
    for outcome in ("complete", "discard"):
        job = await store.claim("default")
        assert job is not None
        await (store.complete(job) if outcome == "complete" else store.discard(job, "kept"))
    assert await store.delete_completed(clock.now()) == 0
    clock.advance(60)
    assert await store.delete_completed(60) == 0
    assert await store.delete_completed(timedelta(seconds=59)) == 1
    assert await store.count_by_state("default", JobState.discarded) == 1


async def retryable_jobs_keep_their_time(store: Store, clock: FakeClock) -> None:
    """Failed jobs are not `available`: that counts what can be claimed now."""
    await settled(store, await running(store), Failed(BOOM), 30)
    await in_state(store, JobState.scheduled)
    assert await store.count_by_state("default", JobState.available) == 0
    assert await store.count_by_state("default", JobState.retryable) == 1
