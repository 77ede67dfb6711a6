"""Acting upon every job of a query: page by page, each page to its end, what moves at the same moment left alone."""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from jobs_async.core import limits
from jobs_async.core.errors import IllegalTransition, OptionError, UniqueConflict
from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import cancel
from jobs_async.core.query import JobQuery
from jobs_async.runtime.patience import in_time
from jobs_async.tasks import finish_anyway

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from jobs_async.core.job import Job
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.store import Store

AT_ONCE = 100
"""Jobs changed in one write."""


async def change_all(
    store: Store,
    query: JobQuery,
    decide: Callable[[Job[Any]], Transition],
    then: Callable[[Job[Any]], Awaitable[None]],
) -> int:
    """Apply what is decided for each job, where that is legal, and let `then` follow; how many have changed."""

    async def change(page: Sequence[Job[Any]]) -> int:
        changed = [job for job in await _apply_legal(store, page, decide) if job is not None]
        for job in changed:
            await then(job)
        return len(changed)

    return sum([await finish_anyway(change(page)) async for page in _pages(store, query)])


async def delete_all(store: Store, query: JobQuery) -> int:
    """Remove each job that is not executing; how many there were."""

    async def delete(page: Sequence[Job[Any]]) -> int:
        """What has come to another state meanwhile is another job than the one that was meant."""
        by_state = groupby(sorted(page, key=_state), _state)
        return sum([await in_time(store.delete([job.id for job in jobs], states=[state])) for state, jobs in by_state])

    return sum([await finish_anyway(delete(page)) async for page in _pages(store, query)])


def cancel_once(job: Job[Any]) -> Transition:
    """As `cancel`, and no second time where a running job was asked before."""
    if job.cancel_requested:
        raise IllegalTransition(f"job {job.id} was asked to end already")
    return cancel(job)


def but_completed(query: JobQuery) -> JobQuery:
    """A query whose states were left open means all but what has been done."""
    given: object = query
    if not isinstance(given, JobQuery) or given.states is not None:
        return query
    return replace(query, states=[state for state in JobState if state is not JobState.completed])


def _state(job: Job[Any]) -> JobState:
    return job.state


async def _pages(store: Store, query: JobQuery) -> AsyncGenerator[Sequence[Job[Any]]]:
    if not isinstance(query, JobQuery):
        raise OptionError(f"which jobs are meant is said by a JobQuery, not by a {limits.type_name(query)}")
    query = replace(query, limit=AT_ONCE)
    while page := await in_time(store.select(query)):
        yield page
        query = replace(query, after=page[-1].id)


async def _apply_legal(
    store: Store, page: Sequence[Job[Any]], decide: Callable[[Job[Any]], Transition]
) -> Sequence[Job[Any] | None]:
    """The records after the steps that can be; where unique keys collide, the first to come is the one."""
    steps: list[Transition] = []
    for job in page:
        with suppress(IllegalTransition):
            steps.append(decide(job))
    try:
        return await in_time(store.apply(steps))
    except UniqueConflict:
        applied: list[Job[Any] | None] = []
        for step in steps:
            with suppress(UniqueConflict):
                applied += await in_time(store.apply([step]))
        return applied
