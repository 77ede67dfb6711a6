"""Running until nothing is left to run: for tests, scripts and machines that are started for a batch."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CancelScope
from msgspec import Struct
from msgspec.structs import replace

from jobs_async.core.errors import StoreClosed, StoreError
from jobs_async.core.job import DEFERRED, Job, JobState
from jobs_async.core.lifecycle import rerun
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.runtime.patience import in_time

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.store import Store
    from jobs_async.runtime.engine import Engine

T = TypeVar("T")
AGAIN = 0.05
"""Seconds until a store that would not hand out what it calls due is asked again."""
MAX_PAUSE = 1.0
"""Seconds between two questions to a store that is away, at most."""

_ENDS = {
    JobState.completed: "completed",
    JobState.retryable: "failed",
    JobState.discarded: "discarded",
    JobState.cancelled: "cancelled",
}
"""What a report calls the end of a run."""

logger = logging.getLogger("jobs_async")


class DrainReport(Struct, frozen=True, kw_only=True):
    """How the runs of a drain ended: a job that failed twice and then completed counts three times."""

    completed: int = 0
    failed: int = 0
    """Failed, to be tried again."""
    discarded: int = 0
    cancelled: int = 0
    snoozed: int = 0

    @property
    def total(self) -> int:
        return self.completed + self.failed + self.discarded + self.cancelled + self.snoozed


class Drain:
    """One drain of the queues of a running engine."""

    def __init__(self, store: Store, engine: Engine, queues: Sequence[str], *, with_scheduled: bool) -> None:
        self._store = store
        self._engine = engine
        self._queues = queues
        self._with_scheduled = with_scheduled
        self._hurried: set[tuple[int, int]] = set()
        self._ends: Counter[str] = Counter()

    def settled(self, step: Transition) -> None:
        """A run has ended."""
        self._ends[_end(step)] += 1

    async def run(self) -> DrainReport:
        """Until none of the queues holds a job that could start, and none is running here.

        Raises:
            StoreClosed: the engine has ended before, whatever its handlers or the store still do.
        """
        with CancelScope() as scope:
            watcher = asyncio.get_running_loop().create_task(self._call_off(scope), name="jobs_async drain")
            try:
                await self._rounds()
                return self._report()
            finally:
                watcher.cancel()
        raise StoreClosed("the Supervisor was stopped before its queues were drained")

    async def _call_off(self, scope: CancelScope) -> None:
        await self._engine.ended()
        scope.cancel()

    async def _rounds(self) -> None:
        """What was claimed while the store was asked is due no longer and does not run yet: only a claim that began
        later shows that nothing was.
        """
        crew = self._engine.crew
        while True:
            await crew.look()
            if not crew.is_idle():
                await crew.quiet()
                continue
            ended = self._ends.total()
            is_due = await self._is_due()
            await crew.look()
            if not is_due and crew.is_idle() and self._ends.total() == ended:
                return
            await crew.quiet()
            if is_due and self._ends.total() == ended:
                await asyncio.sleep(AGAIN)

    async def _is_due(self) -> bool:
        """Whether a queue that is not paused holds what could start now; asked of the store each time."""
        said = await self._surely(self._store.queues)
        queues = [name for name in self._queues if name not in said or not said[name].paused]
        if self._with_scheduled and await self._hurry(queues):
            return True
        return bool(await self._surely(partial(self._store.select, JobQuery(queue=queues, due=True, limit=1))))

    async def _hurry(self, queues: Sequence[str]) -> bool:
        """What waits for its time is due now; once for each attempt, for what snoozes would never come to an end."""
        hurried = False
        async for jobs in self._waiting(queues):
            moved = await self._surely(partial(self._store.apply, [rerun(job) for job in jobs]))
            self._hurried |= {(job.id, job.attempt) for job in moved if job is not None}
            hurried = True
        return hurried

    async def _waiting(self, queues: Sequence[str]) -> AsyncGenerator[Sequence[Job[Any]]]:
        """Pages of jobs whose time has not come, without those that were brought forward in this attempt."""
        query = JobQuery(queue=queues, states=DEFERRED, newest_first=False, limit=MAX_PAGE)
        while page := await self._surely(partial(self._store.select, query)):
            if left := [job for job in page if (job.id, job.attempt) not in self._hurried]:
                yield left
            query = replace(query, after=page[-1].id)

    async def _surely(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer of a store that may be away for a while."""
        pause = AGAIN
        while True:
            try:
                return await in_time(ask())
            except (StoreError, OSError) as error:
                logger.warning("the store does not say what is left to run (%s); asking again", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    def _report(self) -> DrainReport:
        return DrainReport(**{end: count for end, count in self._ends.items() if end})


def _end(step: Transition) -> str:
    """How a report calls the end of a run; what was only handed back is not in it."""
    if step.target is JobState.scheduled:
        return "snoozed" if step.snoozed else ""
    return _ENDS.get(step.target, "")
