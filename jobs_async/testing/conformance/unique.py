"""Uniqueness: who holds a key, for how long, and what each strategy does; idempotency keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs_async.core.errors import UniqueConflict
from jobs_async.core.job import FINAL, LIVE, JobState
from jobs_async.core.lifecycle import Transition, cancel, decide, replaced
from jobs_async.core.options import NewJob, UniqueStrategy
from jobs_async.core.outcome import Completed
from jobs_async.core.store import JobQuery, Store
from jobs_async.testing.conformance.scene import applied, dump, ids, in_state, new, raised, running, stored, waiting

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock

IGNORE, CANCEL, REJECT = UniqueStrategy.IGNORE_NEW, UniqueStrategy.CANCEL_EXISTING, UniqueStrategy.REJECT


def _keyed(strategy: UniqueStrategy, key: str = "k", worker: str = "work", queue: str = "default") -> NewJob:
    return new(worker, unique_key=key, unique_strategy=strategy, queue=queue)


async def every_live_state_holds_the_key(store: Store, clock: FakeClock) -> None:
    """IGNORE_NEW stores nothing and returns the live job as it is, marked as a duplicate."""
    for state in sorted(LIVE):
        job = await in_state(store, state, unique_key=state.name, queue=state.name)
        [met] = await store.insert([_keyed(IGNORE, state.name, worker="other")])
        assert met.duplicate, f"{state.name} did not hold its key"
        assert met.id == job.id
        assert met.state is state
        assert await stored(store, job) == job, "the mark of a duplicate was stored"
    assert len(await dump(store)) == len(LIVE)


async def every_final_state_frees_the_key(store: Store, clock: FakeClock) -> None:
    """A key is free once its job has ended, whatever the strategy of the next."""
    for state in sorted(FINAL):
        for strategy in UniqueStrategy:
            ended = await in_state(store, state, unique_key=state.name, queue=f"{state.name}-{strategy.name}")
            [job] = await store.insert([_keyed(strategy, state.name)])
            assert not job.duplicate
            assert job.id > ended.id
            assert (await stored(store, ended)).state is state
            await applied(store, cancel(job))


async def a_deleted_job_frees_its_keys(store: Store, clock: FakeClock) -> None:
    """Keys last no longer than the row."""
    job = await waiting(store, unique_key="k", idempotency_key="i")
    await store.delete([job.id])
    assert not (await waiting(store, unique_key="k", idempotency_key="i")).duplicate


async def a_key_is_held_across_queues_and_workers(store: Store, clock: FakeClock) -> None:
    """Unique keys are global; jobs without one never meet."""
    job = await waiting(store, worker="a", queue="a", unique_key="k")
    [met] = await store.insert([_keyed(IGNORE, worker="b", queue="b")])
    assert met.id == job.id
    assert len({one.id for one in await store.insert([new(), new(), new()])}) == 3


async def reject_names_the_live_job(store: Store, clock: FakeClock) -> None:
    """REJECT raises UniqueConflict with the job that holds the key, in each live state."""
    for state in sorted(LIVE):
        job = await in_state(store, state, unique_key=state.name, queue=state.name)
        conflict = await raised(UniqueConflict, store.insert([_keyed(REJECT, state.name)]))
        assert conflict.job == job


async def cancel_existing_replaces_in_every_live_state(store: Store, clock: FakeClock) -> None:
    """The old job is cancelled with a grown claim, the new one inserted; the old runner settles nothing."""
    for state in sorted(LIVE):
        old = await in_state(store, state, unique_key=state.name, queue=state.name)
        clock.advance(1)
        [job] = await store.insert([_keyed(CANCEL, state.name, queue="next")])
        assert (job.duplicate, job.replaces) == (False, old.id)
        assert job.id > old.id
        gone = await stored(store, old)
        assert gone == replaced(old, clock.now())
        assert gone.state is JobState.cancelled
        assert gone.claim > old.claim
        if state is JobState.executing:
            assert await store.apply([decide(old, Completed())]) == [None]
        assert (await store.insert([_keyed(IGNORE, state.name)]))[0].id == job.id


async def the_marks_of_an_enqueue_are_not_stored(store: Store, clock: FakeClock) -> None:
    """`duplicate` and `replaces` are on what an enqueue returns, and nowhere after."""
    await store.insert([_keyed(IGNORE, "a"), _keyed(IGNORE, "b")])
    [met] = await store.insert([_keyed(IGNORE, "a")])
    [heir] = await store.insert([_keyed(CANCEL, "b")])
    assert (met.duplicate, heir.replaces is None) == (True, False)
    for job in (met, heir):
        kept = await stored(store, job)
        assert (kept.duplicate, kept.replaces) == (False, None)
        ended = await applied(store, cancel(job))
        assert (ended.duplicate, ended.replaces) == (False, None)
        assert await stored(store, job) == ended


async def a_batch_meets_itself(store: Store, clock: FakeClock) -> None:
    """Two jobs of one key in one batch meet as they would one after the other."""
    first, second, other = await store.insert([_keyed(IGNORE), _keyed(IGNORE, worker="b"), _keyed(IGNORE, "l")])
    assert (second.id, second.duplicate, second.worker) == (first.id, True, "work")
    assert not first.duplicate
    assert other.id > first.id

    old, young = await store.insert([_keyed(IGNORE, "m"), _keyed(CANCEL, "m")])
    assert young.id > old.id
    assert young.replaces == old.id
    assert [(await stored(store, job)).state.name for job in (old, young)] == ["cancelled", "available"]

    before = await dump(store)
    await raised(UniqueConflict, store.insert([new(), _keyed(IGNORE, "n"), _keyed(REJECT, "n")]))
    assert await dump(store) == before
    assert not (await store.insert([_keyed(REJECT, "n")]))[0].duplicate


async def a_batch_sees_what_it_replaced(store: Store, clock: FakeClock) -> None:
    """A job met by its idempotency key is returned as it is then: cancelled, where the batch itself did that."""
    await waiting(store, unique_key="k", idempotency_key="i")
    heir, met = await store.insert([_keyed(CANCEL), new(idempotency_key="i")])
    assert (met.id, met.duplicate, met.state) == (heir.replaces, True, JobState.cancelled)


async def keys_are_compared_exactly(store: Store, clock: FakeClock) -> None:
    """No folding of case, accents or blanks: only equal bytes are equal keys."""
    keys = ["key", "KEY", "key ", " key", "kéy", "ke\u0301y", "key\u200b", "k_y", "k%y", "*", "1", "1.0", "01"]
    jobs = await store.insert([_keyed(REJECT, key) for key in keys])
    jobs += await store.insert([new(idempotency_key=key) for key in keys])
    assert len({job.id for job in jobs}) == 2 * len(keys)


async def an_idempotency_key_meets_any_state(store: Store, clock: FakeClock) -> None:
    """It lasts as long as the row: a job that ended long ago is still the answer."""
    for state in JobState:
        job = await in_state(store, state, idempotency_key=state.name, queue=state.name)
        clock.advance(1)
        [met] = await store.insert([new(idempotency_key=state.name, queue="other")])
        assert (met.id, met.duplicate, met.state) == (job.id, True, state)
        assert await stored(store, job) == job
    assert len(await dump(store)) == len(JobState)


async def an_idempotency_key_belongs_to_its_worker(store: Store, clock: FakeClock) -> None:
    """Two workers may use one key; a batch that repeats itself is stored once."""
    a, b, again = await store.insert([new(worker, idempotency_key="i") for worker in ("a", "b", "a")])
    assert a.id < b.id
    assert (again.id, again.duplicate) == (a.id, True)
    assert ids(await dump(store)) == [a.id, b.id]


async def a_repeated_request_is_answered_whatever_its_strategy(store: Store, clock: FakeClock) -> None:
    """The idempotency key is looked at first: a request sent twice neither raises nor cancels what it made."""
    for strategy in UniqueStrategy:
        draft = new(idempotency_key="i", worker=strategy.name, unique_key=strategy.name, unique_strategy=strategy)
        [job] = await store.insert([draft])
        [met] = await store.insert([draft])
        assert (met.id, met.duplicate, met.state) == (job.id, True, JobState.available)
    assert len(await store.select(JobQuery(states=LIVE))) == len(UniqueStrategy)


async def a_retry_never_meets_itself(store: Store, clock: FakeClock) -> None:
    """A job with a key goes through snooze, staging and claims without being in its own way."""
    job = await running(store, unique_key="k")
    for state in (JobState.scheduled, JobState.retryable, JobState.available):
        waits = await applied(store, Transition(job, state))
        assert (await store.insert([_keyed(IGNORE)]))[0].id == waits.id
        [job] = (await store.fetch("default", 1, node=None)).jobs
        assert (await store.insert([_keyed(IGNORE)]))[0].id == waits.id
    assert ids(await dump(store)) == [job.id]
