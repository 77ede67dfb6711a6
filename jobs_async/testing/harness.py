"""A Supervisor for tests: takes jobs as a running one does, and runs them when the test says so."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Self, TypeVar

from msgspec.structs import replace

from jobs_async.core import binding, limits
from jobs_async.core.errors import CronError, OptionError
from jobs_async.core.job import WAITING, Job, JobState
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.outcome import Interrupted, Lost
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.core.store import rescue
from jobs_async.runtime.drain import DrainReport
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.memory import MemoryStore
from jobs_async.tasks import finish_anyway, to_the_end
from jobs_async.testing.clock import FakeClock, TravelClock
from jobs_async.testing.one_run import OneRun
from jobs_async.testing.standing_in import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from types import ModuleType

    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import Draft, NewJob
    from jobs_async.core.store import Clock, Store
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.engine import ShutdownReport

R = TypeVar("R")
CONCURRENCY = 10


class Harness(Supervisor):
    """In `with Harness(workers=[tasks]) as jobs:` the workers enqueue here, and nothing runs until `drain`, `perform`
    or `run_one` is called; with `inline=True` each job that is due runs before its enqueue returns.

    It counts as running, so workers choose it over a Supervisor of the application that was not started. One that the
    application enqueues into directly, or starts with its server, can be replaced: what `stands_in_for` is asked to do
    with jobs is done here until the end of the block, and to start and stop it does nothing. Without `queues` it serves
    every queue there is. The store is a MemoryStore unless another is given; `clock` is a TravelClock unless another is
    given, and should be the store's own, as it is where the store is given by its URL: `advance` moves it.

    `async with` closes the store at the end, which one in a file needs. For a test of the whole, `start` and `stop` it;
    while it runs, or drains, jobs are run by that, and none inline.

    Raises:
        OptionError, WorkerError: as Supervisor; at the begin of the block, `stands_in_for` is running.
    """

    def __init__(
        self,
        store: Store | str | None = None,
        *,
        workers: Iterable[WorkerDef | ModuleType] = (),
        stands_in_for: Supervisor | None = None,
        inline: bool = False,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        clock = clock or TravelClock()
        options.setdefault("max_stall", None)  # a test that blocks is no stall
        self._replaced = None if stands_in_for is None else StandIn(stands_in_for)
        if self._replaced is not None:
            options = self._replaced.options | options
        super().__init__(store or MemoryStore(clock=clock), workers=workers, clock=clock, **options)
        self._inline = inline
        self._serves_all = "queues" not in options
        self._is_entered = False
        self._claiming = asyncio.Lock()

    # --- while the test lasts ---

    @property
    def is_running(self) -> bool:
        """Inside the `with` block, or started."""
        return self._is_entered or super().is_running

    def __enter__(self) -> Self:
        if self._replaced is not None:
            for worker in self._replaced.workers:
                self._register(worker)
            self._crons |= {name: entry for name, entry in self._replaced.crons.items() if name not in self._crons}
            self._replaced.by(self)
        self._is_entered = True
        self._attach()
        return self

    def _attach(self) -> None:
        for worker in self._workers.values():
            binding.attach(worker, self)

    def __exit__(self, *_exc: object) -> None:
        self._is_entered = False
        binding.detach(self)
        self._waiters.close()
        if self._replaced is not None:
            self._replaced.undo()

    async def __aenter__(self) -> Self:
        await self._ensure_open()
        return self.__enter__()

    async def __aexit__(self, *_exc: object) -> None:
        self.__exit__()
        await to_the_end(self.stop())

    def advance(self, seconds: Seconds) -> None:
        """Let time pass: what was scheduled comes due. On the wall and since boot, or on the wall alone while it is
        started, for its lease goes by the other.

        Raises:
            OptionError: it has a clock that cannot be moved.
        """
        if not isinstance(self.clock, (FakeClock, TravelClock)):
            raise OptionError(f"a {limits.type_name(self.clock)} cannot be moved; use a TravelClock or a FakeClock")
        if self._engine is None:
            self.clock.advance(seconds)
        else:
            self.clock.jump(limits.seconds(seconds, "seconds"))
            self._engine.look_around()

    async def fire_cron(self, name: str, at: datetime | None = None) -> Job[Any]:
        """Enqueue the job of a cron entry as at its next tick, or at the given one, whether it was fired before or not;
        it is due at once.

        Raises:
            CronError: there is no such entry here.
            OptionError: `at` is naive.
        """
        entry = self._crons.get(name)
        if entry is None:
            raise CronError(f"no cron entry named {name!r} is registered here")
        tick = entry.next_after(self.clock.now()) if at is None else limits.instant(at, "at")
        new = entry.at_tick(self._decided(entry.draft), tick)
        (job,) = await self._insert([replace(new, scheduled_at=None)])
        return await self.get(job)

    # --- running jobs ---

    async def drain(self, *, with_scheduled: bool = False, timeout: Seconds | None = None) -> DrainReport:
        if self._lives or not self._serves_all:
            return await super().drain(with_scheduled=with_scheduled, timeout=timeout)
        now = asyncio.get_running_loop().time
        end = math.inf if timeout is None else now() + limits.seconds(timeout, "timeout")
        served, report = None, DrainReport()
        while served != await self._serve_all():  # what ran may have put jobs into a queue that nobody knew
            served = self._queues
            left = None if timeout is None else max(0.0, end - now())
            report = _sum(report, await super().drain(with_scheduled=with_scheduled, timeout=left))
        return report

    async def start(self) -> None:
        if self._serves_all and not self._lives:
            await self._serve_all()
        await super().start()

    async def _end(self) -> ShutdownReport:
        report = await super()._end()
        if self._is_entered:  # what was started is stopped, and the block goes on
            self._attach()
        return report

    async def _serve_all(self) -> dict[str, int]:
        """Serve every queue that holds a job or is the one of a worker."""
        await self._ensure_open()
        known = {queue for queue, _ in await self.store.tally()} | {w.opts.queue for w in self._workers.values()}
        self._queues = dict.fromkeys(sorted(known | {"default"}), CONCURRENCY)
        return self._queues

    async def _insert(self, new: Sequence[NewJob], tick: Any = None) -> list[Job[Any]]:
        jobs = await super()._insert(new, tick)
        if self._inline and not self._lives:
            for job in jobs:
                if not job.duplicate and await self._is_due(job):
                    await self.run_one(job)
        return jobs

    async def _is_due(self, job: Job[Any]) -> bool:
        """Nothing stands against running it now; asked of the store, for one that ran before it may have changed it."""
        is_there = await self.store.select(JobQuery(ids=[job.id], states=[JobState.available]))
        return bool(is_there) and not await self.store.is_paused(job.queue)

    async def enqueue_many(self, drafts: Iterable[Draft[R]], /, *, connection: object = None) -> list[Job[R]]:
        jobs = await super().enqueue_many(drafts, connection=connection)
        if not self._inline or connection is not None:
            return jobs
        return [job if job.duplicate else await self.get(job) for job in jobs]

    async def put(self, draft: Draft[R]) -> Job[R]:
        """Store a job without running it, also where that is done inline."""
        await self._ensure_open()
        (job,) = await finish_anyway(super()._insert([self._decided(draft)]))
        return job

    @property
    def worker_names(self) -> frozenset[str]:
        """The workers known here."""
        return frozenset(self._workers)

    async def run_one(self, job: Job[R], *, attempt: int | None = None) -> Job[R]:
        """Run one attempt of a job that waits, whatever its time, with all that belongs to it: timeout, boundary,
        settlement, telemetry. The record as it is then. Cancelled, it ends the attempt as a stop does. What waits
        before it in its queue is claimed as well and handed back, which leaves its traces in those records.

        Raises:
            JobNotFound: it is not in the store.
            OptionError: it does not wait, or its queue is paused.
        """
        one = OneRun(self, job.queue)
        running = asyncio.get_running_loop().create_task(one.run(self._claim(job, attempt)), name="jobs_async one job")
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            one.stop()
            await to_the_end(_end_of(running))
            raise
        running.result()
        return await self.get(job)

    async def _claim(self, job: Job[Any], attempt: int | None) -> Job[Any]:
        """Claim this very job, and hand back whatever comes before it; one at a time, for each holds up the others."""
        await self._ensure_open()
        async with self._claiming:
            row = await self.store.get(job.id)
            if row.state not in WAITING:
                raise OptionError(f"job {job.id} is {row.state.name} and cannot be run now")
            if await self.store.is_paused(row.queue):
                raise OptionError(f"job {job.id} cannot be run now: queue {row.queue!r} is paused")
            number = row.attempt + 1 if attempt is None else limits.integer(attempt, "attempt", 1)
            await self._bring_forward(row, number)
            return await self._fetch(row)

    async def _fetch(self, row: Job[Any]) -> Job[Any]:
        claimed: list[Job[Any]] = []
        try:
            while page := (await self.store.fetch(row.queue, MAX_PAGE, node=None)).jobs:
                claimed += page
                if mine := [one for one in page if one.id == row.id]:
                    return mine[0]
        finally:
            await self.store.apply([decide(one, Interrupted()) for one in claimed if one.id != row.id])
        raise OptionError(f"job {row.id} cannot be run now: somebody else has claimed it")

    async def _bring_forward(self, row: Job[Any], attempt: int) -> None:
        """Make it due, with the attempt to come."""
        more = attempt - 1 - row.attempt
        if more or row.state is not JobState.available:
            target = JobState.scheduled if row.state is JobState.available else JobState.available
            await self.store.apply([Transition(row, target, attempt_delta=more)])

    async def claim_to_crash(self, job: Job[Any]) -> tuple[Job[Any], WorkerDef]:
        """A claimed job and its worker, to be run outside of all that would settle it."""
        claimed = await self._claim(job, None)
        return claimed, self._workers[claimed.worker]

    async def rescue_one(self, claimed: Job[R]) -> Job[R]:
        """What another node does with a job whose node has died: it is available again and the attempt counts, unless
        that was its last, or somebody has asked to cancel it.
        """
        await self.store.apply([decide(await self.store.get(claimed.id), Lost())])
        return await self.get(claimed)

    async def crash(self) -> None:
        """Die as by `kill -9` while started: nothing is settled, nothing handed back. What ran is then rescued at once,
        as another node would after the lease.

        The handlers are cancelled, for there is no other way to stop them here: their `finally` blocks do run.
        """
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.die()
            binding.changed()
        await rescue(self.store, JobQuery(orphaned=True, limit=MAX_PAGE), Lost().text)


def _sum(one: DrainReport, other: DrainReport) -> DrainReport:
    return DrainReport(**{kind: getattr(one, kind) + getattr(other, kind) for kind in DrainReport.__struct_fields__})


async def _end_of(task: asyncio.Task[None]) -> None:
    """Wait for it, and look at its error, so that it is not reported as never retrieved."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
