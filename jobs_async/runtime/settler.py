"""Making outcomes durable: what waits while one write is in flight shares the next (natural batching, no timer).

A run keeps its slot until its settlement is durable and its event delivered, so a kill repeats at most what is
running. A store that is away is asked again until it is back. Where a handler has completed its job in a transaction of
its own, the store is asked what became of that, and only what was rolled back is settled here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import StoreBusy, WriteRefused
from jobs_async.core.events import Event, StaleSettlement, outcome_event
from jobs_async.core.job import DEFERRED, Job, JobState
from jobs_async.core.lifecycle import Transition, advance, decide
from jobs_async.core.outcome import Completed, Discarded, Failed, Failure
from jobs_async.core.store import JobQuery, Store
from jobs_async.runtime.loops import Bell
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from random import Random

    from jobs_async.runtime.herald import Herald
    from jobs_async.runtime.outage import Outage

MAX_BATCH = 500
FIRST_PAUSE, MAX_PAUSE = 0.05, 5.0
TRIES_TOGETHER = 3
"""Failures after which a batch is written one by one, so that one bad row cannot hold up its neighbours."""

REFUSALS = (WriteRefused, ValueError, TypeError)
REFUSED = "SettlementRefused"
SETTLING, READING = "settling jobs", "reading jobs"
SETTLING_HELD = "settling jobs that somebody's transaction may hold"

Release = Callable[[list[Run]], None]
Settled = tuple[Run, Transition, Job[Any] | None]

logger = logging.getLogger("jobs_async")


class Settler:
    """Takes ended runs, writes what follows, tells of it, and gives the runs back to their queues."""

    def __init__(
        self, store: Store, herald: Herald, outage: Outage, rng: Random, settled: Callable[[Transition, Job[Any]], None]
    ) -> None:
        self._store = store
        self._herald = herald
        self._outage = outage
        self._rng = rng
        self._settled = settled
        self._inbox: list[tuple[Run, Release]] = []
        self._apart: set[asyncio.Task[None]] = set()
        self._bell = Bell()
        self._closing = False

    def take(self, run: Run, release: Release) -> None:
        """Settle an ended run, then hand it to `release`, together with others of its queue."""
        self._inbox.append((run, release))
        self._bell.ring()

    def close(self) -> None:
        """End when the inbox is empty."""
        self._closing = True
        self._bell.ring()

    async def loop(self) -> None:
        try:
            while self._inbox or not self._closing:
                await self._bell.wait()
                self._bell.silence()
                while self._inbox:
                    batch, self._inbox = self._inbox[:MAX_BATCH], self._inbox[MAX_BATCH:]
                    await self._serve(batch)
            while self._apart:
                await asyncio.wait(self._apart)
        finally:
            for task in self._apart:
                task.cancel()

    async def _serve(self, batch: Sequence[tuple[Run, Release]]) -> None:
        """Settle these; those apart whose row an open transaction may hold, for nobody else shall wait for that."""
        mine = list(batch)
        try:
            done = await self._completed([run for run, _ in batch if run.completion is not None])
            mine = [each for each in batch if each[0].completion is None or each[0] in done]
            for run, release in batch:
                if run.completion is not None and run not in done:
                    self._set_apart(run, release)
            runs = [run for run, _ in mine if run.completion is None]
            settled: list[Settled] = [
                (run, run.completion, job) for run, job in done.items() if run.completion is not None
            ]
            try:
                settled += await self._settle(runs, insists=False) if runs else []
            except StoreBusy:  # one of them is held, and the others need not wait for its end
                for run, release in mine:
                    if run.completion is None:
                        self._set_apart(run, release)
                mine = [each for each in mine if each[0].completion is not None]
            await self._tell(settled)
        finally:
            for release, ended in _by_release(mine).items():
                release(ended)

    def _set_apart(self, run: Run, release: Release) -> None:
        task = asyncio.get_running_loop().create_task(self._settle_apart(run, release), name="jobs_async settling")
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)

    async def _settle_apart(self, run: Run, release: Release) -> None:
        try:
            await self._tell(await self._settle([run], SETTLING_HELD))
        finally:
            release([run])

    async def _completed(self, runs: Sequence[Run]) -> dict[Run, Job[Any]]:
        """The records of those that a transaction of their handler has completed."""
        if not runs:
            return {}
        ids = [run.job.id for run in runs]
        rows = await self._insist(lambda: self._store.select(JobQuery(ids=ids, limit=len(ids))))
        stored = {row.id: row for row in rows}
        return {run: row for run in runs if (row := stored.get(run.job.id)) is not None and _is_completed(row, run)}

    async def _settle(self, runs: Sequence[Run], doing: str = SETTLING, *, insists: bool = True) -> list[Settled]:
        steps = [run.step() for run in runs]
        applied = await self.write(steps, doing, insists=insists)
        return [
            (run, step, job) if job is not None else (run, *await self._settle_again(run, step))
            for run, step, job in zip(runs, steps, applied, strict=True)
        ]

    async def _tell(self, settled: Sequence[Settled]) -> None:
        for run, step, job in settled:
            if job is not None:
                self._settled(step, job)
            if step is run.completion and not isinstance(run.outcome, (Completed, Failed)):  # a failure is in the log
                logger.warning("job %d (%s) stays completed, whatever its handler did then", run.job.id, run.job.worker)
        if self._herald.is_heard:
            await self._herald.tell(lambda at: [_event(*each, at) for each in settled])

    async def _settle_again(self, run: Run, step: Transition) -> tuple[Transition, Job[Any] | None]:
        """The fence refused. Either we wrote this before and the answer got lost; or somebody asked to cancel
        meanwhile, and we decide anew; or the claim is no longer ours.
        """
        rows = await self._insist(lambda: self._store.select(JobQuery(ids=[run.job.id])))
        row = rows[0] if rows else None
        if run.completion is not None and row is not None and _is_completed(row, run):
            return run.completion, row
        if row is not None and _is_written(row, step):
            return step, row if row.state is step.target else advance(step.job, step, self._herald.now())
        job = None
        if row is not None and row.state is JobState.executing and row.claim == run.job.claim:
            run.job = row
            step = run.step()
            (job,) = await self.write([step])
        if job is None:
            logger.warning("job %d (%s) was taken from this node; its outcome is dropped", run.job.id, run.job.worker)
        return step, job

    async def write(
        self, steps: Sequence[Transition], doing: str = SETTLING, *, insists: bool = True
    ) -> list[Job[Any] | None]:
        """Apply transitions, insisting while the store is away; and where somebody holds their rows, if it `insists`.

        Where the store refuses a batch for good, each step is written by itself; one that it will never take ends its
        job as a discard, and where it does not even take that, None.

        Raises:
            StoreBusy: it does not insist.
        """
        pause, tries = FIRST_PAUSE, 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                applied = await in_time(self._store.apply(steps))
                self._outage.worked(doing)
                return applied
            except Exception as error:
                if isinstance(error, StoreBusy) and not insists:
                    raise
                tries += 1
                refused = isinstance(error, REFUSALS)
                if not refused:
                    self._outage.failed(doing, error, began)
                if len(steps) > 1 and (refused or tries == TRIES_TOGETHER):
                    return [job for step in steps for job in await self.write([step], doing)]
                if refused:
                    return await self._discard_instead(steps[0], error)
            await asyncio.sleep(self._rng.uniform(0, pause))
            pause = min(pause * 2, MAX_PAUSE)

    async def _discard_instead(self, step: Transition, error: Exception) -> list[Job[Any] | None]:
        if step.error is not None and step.error.type == REFUSED:
            return [None]
        logger.error("the store refuses the outcome of job %d (%s)", step.job.id, type(error).__name__)
        failure = Failure(REFUSED, f"its settlement was refused: {type(error).__name__}")
        return await self.write([decide(step.job, Discarded(failure))])

    async def _insist(self, ask: Callable[[], Any]) -> Any:
        pause = FIRST_PAUSE
        while True:
            began = asyncio.get_running_loop().time()
            try:
                answer = await in_time(ask())
                self._outage.worked(READING)
                return answer
            except Exception as error:
                self._outage.failed(READING, error, began)
            await asyncio.sleep(self._rng.uniform(0, pause))
            pause = min(pause * 2, MAX_PAUSE)


def _is_written(row: Job[Any], step: Transition) -> bool:
    """Has our own write come through, whose answer got lost? Nobody but its claim's holder, or a rescue, moves a job
    on from there; what was to wait may be due by now, and what failed may have been claimed again.
    """
    base, error = step.job, step.error
    if error is not None and any(
        (record.attempt, record.node, record.error) == (base.attempt, base.node, error.error)
        for record in row.errors
        if record not in base.errors
    ):
        return True
    return (
        row.claim == base.claim
        and (row.state is step.target or (row.state is JobState.available and step.target in DEFERRED))
        and row.rescues == base.rescues
        and row.attempt == max(0, base.attempt + step.attempt_delta)
    )


def _is_completed(row: Job[Any], run: Run) -> bool:
    """Has a transaction of the handler completed it? What the handler did after that is of no account."""
    return row.state is JobState.completed and row.claim == run.job.claim


def _event(run: Run, step: Transition, job: Job[Any] | None, at: datetime) -> Event:
    if job is None:
        return StaleSettlement(job=run.job, at=at)
    return outcome_event(step, job, at, round(run.duration * 1000))


def _by_release(batch: Sequence[tuple[Run, Release]]) -> dict[Release, list[Run]]:
    ended: dict[Release, list[Run]] = {}
    for run, release in batch:
        ended.setdefault(release, []).append(run)
    return ended
