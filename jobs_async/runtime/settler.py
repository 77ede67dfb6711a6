"""Making outcomes durable: what waits while one write is in flight shares the next (natural batching, no timer).

A run keeps its slot until its settlement is durable and its event delivered, so a kill repeats at most what is
running. A store that is away is asked again until it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import WriteRefused
from jobs_async.core.events import Event, StaleSettlement, outcome_event
from jobs_async.core.job import Job, JobState
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.outcome import Discarded, Failure
from jobs_async.core.store import Clock, JobQuery, Store
from jobs_async.runtime.loops import Bell
from jobs_async.runtime.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from jobs_async.telemetry import Telemetry

MAX_BATCH = 500
FIRST_PAUSE, MAX_PAUSE = 0.05, 5.0
TRIES_TOGETHER = 3
"""Failures after which a batch is written one by one, so that one bad row cannot hold up its neighbours."""

REFUSALS = (WriteRefused, ValueError, TypeError)
REFUSED = "SettlementRefused"

Release = Callable[[list[Run]], None]

logger = logging.getLogger("jobs_async")


class Settler:
    """Takes ended runs, writes what follows, tells of it, and gives the runs back to their queues."""

    def __init__(
        self, store: Store, telemetry: Telemetry | None, clock: Clock, rng: Random, settled: Callable[[Job[Any]], None]
    ) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._rng = rng
        self._settled = settled
        self._inbox: list[tuple[Run, Release]] = []
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
        while self._inbox or not self._closing:
            await self._bell.wait()
            self._bell.silence()
            while self._inbox:
                batch, self._inbox = self._inbox[:MAX_BATCH], self._inbox[MAX_BATCH:]
                try:
                    await self._settle([run for run, _ in batch])
                finally:
                    for release, ended in _by_release(batch).items():
                        release(ended)

    async def _settle(self, runs: Sequence[Run]) -> None:
        steps = [run.step() for run in runs]
        applied = await self.write(steps)
        events: list[Event] = []
        at = self._clock.now() if self._telemetry is not None and self._telemetry.is_watched else None
        for run, first, written in zip(runs, steps, applied, strict=True):
            step, job = (first, written) if written is not None else await self._settle_again(run)
            if job is not None:
                self._settled(job)
            if at is not None and job is not None:
                events.append(outcome_event(step, job, at, round(run.duration * 1000)))
            elif at is not None:
                events.append(StaleSettlement(job=run.job, at=at))
        if events and self._telemetry is not None:
            await self._telemetry.deliver(events)

    async def _settle_again(self, run: Run) -> tuple[Transition, Job[Any] | None]:
        """The fence refused: somebody asked to cancel meanwhile, and we decide anew, or the claim is no longer ours."""
        rows = await self._insist(lambda: self._store.select(JobQuery(ids=[run.job.id])))
        row = rows[0] if rows else None
        job = None
        if row is not None and row.state is JobState.executing and row.claim == run.job.claim:
            run.job = row
            (job,) = await self.write([run.step()])
        if job is None:
            logger.warning("job %d (%s) was taken from this node; its outcome is dropped", run.job.id, run.job.worker)
        return run.step(), job

    async def write(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        """Apply transitions, insisting while the store is away.

        Where the store refuses a batch for good, each step is written by itself; one that it will never take ends its
        job as a discard, and where it does not even take that, None.
        """
        pause, tries = FIRST_PAUSE, 0
        while True:
            try:
                return await self._store.apply(steps)
            except Exception as error:
                tries += 1
                refused = isinstance(error, REFUSALS)
                logger.warning("%d settlements could not be written (%s)", len(steps), error)
                if len(steps) > 1 and (refused or tries == TRIES_TOGETHER):
                    return [job for step in steps for job in await self.write([step])]
                if refused:
                    return await self._discard_instead(steps[0], error)
            await asyncio.sleep(self._rng.uniform(0, pause))
            pause = min(pause * 2, MAX_PAUSE)

    async def _discard_instead(self, step: Transition, error: Exception) -> list[Job[Any] | None]:
        if step.error is not None and step.error.type == REFUSED:
            return [None]
        failure = Failure(REFUSED, f"its settlement was refused: {type(error).__name__}")
        return await self.write([decide(step.job, Discarded(failure))])

    async def _insist(self, ask: Callable[[], Any]) -> Any:
        pause = FIRST_PAUSE
        while True:
            try:
                return await ask()
            except Exception as error:
                logger.warning("the store does not answer (%s); asking again", error)
            await asyncio.sleep(self._rng.uniform(0, pause))
            pause = min(pause * 2, MAX_PAUSE)


def _by_release(batch: Sequence[tuple[Run, Release]]) -> dict[Release, list[Run]]:
    ended: dict[Release, list[Run]] = {}
    for run, release in batch:
        ended.setdefault(release, []).append(run)
    return ended
