"""What the checks share: short ways to a job in the state they need, and to what the store keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from jobs_async.core.job import Job, JobState
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.options import NewJob
from jobs_async.core.outcome import Completed, Discarded, Failed, Failure, Interrupted, Outcome
from jobs_async.core.store import JobQuery, Node, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

E = TypeVar("E", bound=Exception)

ELSEWHERE = "elsewhere"
BOOM = Failure("ValueError", "ValueError: boom", ("app.py:7:work",))
LONG = 86_400.0
"""Seconds that outlast every lease and delay of a check."""


def new(worker: str = "work", args_json: str = "{}", **options: Any) -> NewJob:
    return NewJob(worker, args_json, **options)


async def waiting(store: Store, **options: Any) -> Job[Any]:
    """A job that was just inserted."""
    return (await store.insert([new(**options)]))[0]


async def running(store: Store, *, node: str | None = None, **options: Any) -> Job[Any]:
    """A job that was just claimed; its queue must have held no other that is due."""
    job = await waiting(store, **options)
    fetched = (await store.fetch(job.queue, 1, node=node)).jobs
    assert [one.id for one in fetched] == [job.id], "the queue handed out another job, or none"
    return fetched[0]


async def in_state(store: Store, state: JobState, **options: Any) -> Job[Any]:
    """A job that came into a state by the shortest way."""
    if state is JobState.available:
        return await waiting(store, **options)
    if state is JobState.scheduled:
        return await waiting(store, delay=LONG, **options)
    job = await running(store, **options)
    ways: dict[JobState, Transition] = {
        JobState.completed: decide(job, Completed()),
        JobState.retryable: decide(job, Failed(BOOM), LONG),
        JobState.discarded: decide(job, Discarded(BOOM)),
        JobState.cancelled: Transition(job, JobState.cancelled),
    }
    return job if state is JobState.executing else await applied(store, ways[state])


async def applied(store: Store, step: Transition) -> Job[Any]:
    """The record after a step that must fit."""
    job = (await store.apply([step]))[0]
    assert job is not None, f"{step.job!r} has not changed, yet its step to {step.target.name} was refused as stale"
    return job


async def settled(store: Store, job: Job[Any], outcome: Outcome, retry_delay: float = 0.0) -> Job[Any]:
    """The record after a run that ended so."""
    return await applied(store, decide(job, outcome, retry_delay))


async def claimed_again(store: Store, job: Job[Any], node: str | None = None) -> Job[Any]:
    """The next claim of a job that was handed back; nothing else of its queue must be due."""
    await settled(store, job, Interrupted())
    [again] = (await store.fetch(job.queue, 1, node=node)).jobs
    assert again.id == job.id, "the queue handed out another job"
    return again


async def stored(store: Store, job: Job[Any]) -> Job[Any]:
    """What the store keeps under the id of a job."""
    jobs = await store.select(JobQuery(ids=[job.id]))
    assert [one.id for one in jobs] == [job.id], f"asked for job {job.id} alone, got {jobs!r}"
    return jobs[0]


async def dump(store: Store, page: int = 100) -> list[Job[Any]]:
    """Every job, oldest first, read page by page."""
    jobs: list[Job[Any]] = []
    while found := await store.select(
        JobQuery(after=jobs[-1].id if jobs else None, newest_first=False, limit=page),
    ):
        assert len(found) <= page, "a page held more jobs than asked for"
        assert not jobs or found[0].id > jobs[-1].id, "a page began at or before the last job seen"
        jobs += found
    return jobs


async def joined(store: Store, node_id: str, ttl: float = 30.0, **info: Any) -> Node:
    """A node whose lease was just created."""
    node = Node(id=node_id, **info)
    assert (await store.beat(node, ttl, join=True)).alive, "a lease that was just created does not hold"
    return node


async def raised(kind: type[E], call: Awaitable[object]) -> E:
    """The error that a call must raise."""
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def ids(jobs: Iterable[Job[Any]]) -> list[int]:
    return [job.id for job in jobs]
