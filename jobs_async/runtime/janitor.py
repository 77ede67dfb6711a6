"""Looking after what nobody runs any more: jobs of dead nodes, claims of our own whose answer never arrived, and
ended jobs that are kept no longer.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import StoreBusy
from jobs_async.core.events import outcome_event
from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import decide
from jobs_async.core.outcome import Interrupted, Lost
from jobs_async.core.store import MAX_PAGE, JobQuery
from jobs_async.runtime.backoff import default_delay, retry_delay
from jobs_async.runtime.patience import STORE_SECONDS, in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from jobs_async.core.events import Event
    from jobs_async.core.job import Job
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.crew import Crew
    from jobs_async.runtime.herald import Herald
    from jobs_async.runtime.host import Host

APART = 1.0
"""Seconds between the next starts of jobs that died together."""
MAX_APART = 60
BETWEEN_BATCHES = 0.05
"""Seconds between two batches of old jobs."""

logger = logging.getLogger("jobs_async")


class Janitor:
    """Any node may do this at any time: a lost race changes nothing, for every step is fenced."""

    def __init__(
        self,
        host: Host,
        crew: Crew,
        herald: Herald,
        *,
        workers: Mapping[str, WorkerDef],
        node: Callable[[], str],
        max_rescues: int,
        retention: Mapping[JobState, float],
    ) -> None:
        self._host = host
        self._crew = crew
        self._herald = herald
        self._workers = workers
        self._node = node
        self._lost = Lost(max_rescues)
        self._retention = retention
        self._strays: dict[tuple[int, int], float] = {}

    async def sweep(self) -> None:
        """One round."""
        await self._hand_back_strays()
        await self._rescue()

    async def _rescue(self) -> None:
        """Free what dead nodes were running, page by page."""
        after = None
        while jobs := await in_time(
            self._host.store.select(JobQuery(orphaned=True, newest_first=False, after=after, limit=MAX_PAGE))
        ):
            after = jobs[-1].id
            delays = await asyncio.gather(*(self._delay(job, place) for place, job in enumerate(jobs)))
            steps = [decide(job, self._lost, delay) for job, delay in zip(jobs, delays, strict=True)]
            freed = zip(steps, await self._apply(steps), strict=True)
            done = [(step, job) for step, job in freed if job is not None]
            if done:
                dead = ", ".join(sorted({str(step.job.node) for step, _ in done}))
                logger.warning("rescued %d jobs of dead nodes (%s)", len(done), dead)
            await self._herald.tell(partial(_freed, done))
            for _, job in done:
                self._crew.nudge(job.queue)

    async def _apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        """Free what can be: a transaction that a dead node has left open may hold one job, and must not hold all."""
        try:
            return await in_time(self._host.store.apply(steps))
        except StoreBusy:
            if len(steps) == 1:
                logger.warning("job %d is lost, and held by somebody's transaction: later", steps[0].job.id)
                return [None]
        return [job for step in steps for job in await self._apply([step])]

    async def _delay(self, job: Job[Any], place: int) -> float:
        """As its worker's strategy says, where we know the worker; only from the second rescue on is there one.

        Jobs that died together more than once are then run one after the other: one of them may be the killer, and
        must not take the others with it again.
        """
        if not job.rescues:
            return 0.0
        worker, retry, apart = self._workers.get(job.worker), job.rescues - 1, APART * (place % MAX_APART)
        if worker is None:
            return apart + default_delay(retry, self._host)
        return apart + await retry_delay(worker, retry, self._host)

    async def prune(self, stopping: Callable[[], bool]) -> None:
        """Remove the jobs that are kept no longer, in batches between which claims and settlements have their turn."""
        for state, age in self._retention.items():
            while not stopping():
                if await in_time(self._host.store.purge([state], age, MAX_PAGE)) < MAX_PAGE:
                    break
                await asyncio.sleep(BETWEEN_BATCHES)

    async def clear_out(self) -> None:
        """Before this node leaves: no claim is on its way any longer, so none has to be waited for."""
        await self._hand_back_strays(patience=0.0)

    async def _hand_back_strays(self, patience: float = STORE_SECONDS) -> None:
        """Free what the store says we run and we do not: claims whose answer can no longer arrive."""
        strays: dict[tuple[int, int], Job[Any]] = {}
        after = None
        while claimed := await in_time(
            self._host.store.select(
                JobQuery(
                    states=[JobState.executing], node=self._node(), newest_first=False, after=after, limit=MAX_PAGE
                )
            )
        ):
            after = claimed[-1].id
            known = {(run.job.id, run.job.claim) for run in self._crew.runs()}
            strays |= {(job.id, job.claim): job for job in claimed if (job.id, job.claim) not in known}
            if len(claimed) < MAX_PAGE:
                break
        now = asyncio.get_running_loop().time()
        self._strays = {key: self._strays.get(key, now) for key in strays}
        lost = [decide(job, Interrupted()) for key, job in strays.items() if now - self._strays[key] >= patience]
        for job in await self._apply(lost) if lost else ():
            if job is not None:
                logger.warning("job %d (%s) was claimed but its claim never arrived; handed back", job.id, job.worker)
                self._crew.nudge(job.queue)


def _freed(done: Sequence[tuple[Transition, Job[Any]]], at: datetime) -> list[Event]:
    return [outcome_event(step, job, at) for step, job in done]
