"""A Supervisor for tests: takes jobs as a running one does, and runs them when the test says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

from jobs_async.core import binding, limits
from jobs_async.core.errors import OptionError
from jobs_async.core.job import WAITING, Job, JobState
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.outcome import Interrupted, Lost
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.core.store import RESCUE_TEXT, rescue
from jobs_async.runtime.herald import Herald
from jobs_async.runtime.outage import Outage
from jobs_async.runtime.queue_runner import QueueRunner
from jobs_async.runtime.run import Cause
from jobs_async.runtime.settler import Settler
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.runtime.waiting import Waiters
from jobs_async.stores.memory import MemoryStore
from jobs_async.tasks import to_the_end
from jobs_async.testing.clock import FakeClock, TravelClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import Draft, NewJob
    from jobs_async.core.store import Store
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.drain import DrainReport

R = TypeVar("R")
CONCURRENCY = 10


class Harness(Supervisor):
    """In `with Harness(workers=[tasks]) as jobs:` the workers enqueue here, and nothing runs until `drain`, `perform`
    or `run_one` is called; with `inline=True` each job that is due runs before its enqueue returns.

    It counts as running, so workers choose it over a Supervisor of the application that was not started. One that the
    application enqueues into directly can be replaced: `stands_in_for` hands its workers and its jobs over to this one
    until the end of the block. Without `queues` it serves every queue there is. The store is a MemoryStore unless
    another is given; `clock` is a TravelClock unless another is given, and should be the store's own: `advance` moves
    it.

    `async with` closes the store at the end, which one in a file needs. For a test of the whole, `start` and `stop` it.

    Raises:
        OptionError, WorkerError: as Supervisor.
    """

    def __init__(
        self,
        store: Store | str | None = None,
        *,
        workers: Iterable[WorkerDef | ModuleType] = (),
        stands_in_for: Supervisor | None = None,
        inline: bool = False,
        clock: FakeClock | TravelClock | None = None,
        **options: Any,
    ) -> None:
        clock = self._time = clock or TravelClock()
        options.setdefault("max_stall", None)  # a test that blocks is no stall
        super().__init__(store or MemoryStore(clock=clock), workers=workers, clock=clock, **options)
        self._inline = inline
        self._serves_all = "queues" not in options
        self._replaced = None if stands_in_for is None else _Replaced(stands_in_for)
        self._is_entered = False
        if stands_in_for is not None:
            for worker in workers_of(stands_in_for):
                self._register(worker)

    # --- while the test lasts ---

    @property
    def is_running(self) -> bool:
        """Inside the `with` block, or started."""
        return self._is_entered or super().is_running

    def __enter__(self) -> Self:
        self._is_entered = True
        for worker in self._workers.values():
            binding.attach(worker, self)
        if self._replaced is not None:
            self._replaced.by(self.store)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_entered = False
        binding.detach(self)
        if self._replaced is not None:
            self._replaced.undo()

    async def __aenter__(self) -> Self:
        await self._ensure_open()
        return self.__enter__()

    async def __aexit__(self, *_exc: object) -> None:
        self.__exit__()
        await to_the_end(self.stop())

    def advance(self, seconds: Seconds) -> None:
        """Let time pass, on the wall and since boot: what was scheduled comes due."""
        self._time.advance(seconds)

    # --- running jobs ---

    async def drain(self, *, with_scheduled: bool = False, timeout: Seconds | None = None) -> DrainReport:
        await self._serve_all()
        return await super().drain(with_scheduled=with_scheduled, timeout=timeout)

    async def start(self) -> None:
        await self._serve_all()
        await super().start()

    async def _serve_all(self) -> None:
        if self._serves_all:
            await self._ensure_open()
            known = {queue for queue, _ in await self.store.tally()} | {w.opts.queue for w in self._workers.values()}
            self._queues = dict.fromkeys(sorted(known | {"default"}), CONCURRENCY)

    async def _insert(self, new: Sequence[NewJob], tick: Any = None) -> list[Job[Any]]:
        jobs = await super()._insert(new, tick)
        if self._inline:
            for job in jobs:
                if job.state is JobState.available and not job.duplicate:
                    await self.run_one(job)
        return jobs

    async def enqueue_many(self, drafts: Iterable[Draft[R]], /, *, connection: object = None) -> list[Job[R]]:
        jobs = await super().enqueue_many(drafts, connection=connection)
        if not self._inline or connection is not None:
            return jobs
        return [job if job.duplicate else await self.get(job) for job in jobs]

    @property
    def worker_names(self) -> frozenset[str]:
        """The workers known here."""
        return frozenset(self._workers)

    async def put(self, draft: Draft[R]) -> Job[R]:
        """Store a job without running it, also where that is done inline."""
        inline, self._inline = self._inline, False
        try:
            return await self.enqueue(draft)
        finally:
            self._inline = inline

    async def run_one(self, job: Job[R], *, attempt: int | None = None) -> Job[R]:
        """Run one attempt of a job that waits, whatever its time, with all that belongs to it: timeout, boundary,
        settlement, telemetry. The record as it is then.

        Raises:
            JobNotFound: it is not in the store.
            OptionError: it does not wait, or its queue is paused.
        """
        claimed = await self._claim(job, attempt)
        herald = Herald(self.telemetry, self.clock)
        outage = Outage(herald)
        settler = Settler(self.store, herald, outage, self.rng, self._settled)
        runner = QueueRunner(
            claimed.queue,
            1,
            host=self,
            node=_nobody,
            find=self._workers.get,
            settler=settler,
            herald=herald,
            outage=outage,
            poll_interval=1.0,
        )
        settling = asyncio.get_running_loop().create_task(settler.loop(), name="jobs_async settler")
        try:
            await runner.begin([claimed])
            await runner.empty.wait()
        finally:
            for run in list(runner.runs.values()):
                run.stop(Cause.STOP)
            await to_the_end(_end(runner, settler, settling, herald))
        return await self.get(claimed)

    async def _claim(self, job: Job[Any], attempt: int | None) -> Job[Any]:
        """Claim this very job, and hand back whatever comes before it."""
        await self._ensure_open()
        row = await self.store.get(job.id)
        if row.state not in WAITING:
            raise OptionError(f"job {job.id} is {row.state.name} and cannot be run now")
        await self._bring_forward(row, row.attempt + 1 if attempt is None else limits.integer(attempt, "attempt", 1))
        claimed: list[Job[Any]] = []
        while all(one.id != job.id for one in claimed):
            page = (await self.store.fetch(row.queue, MAX_PAGE, node=None)).jobs
            if not page:
                raise OptionError(f"queue {row.queue!r} hands out no jobs: is it paused?")
            claimed += page
        await self.store.apply([decide(one, Interrupted()) for one in claimed if one.id != job.id])
        return next(one for one in claimed if one.id == job.id)

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

    async def rescue_one(self, claimed: Job[Any]) -> None:
        """What another node does with a job whose node has died: it is available again, the attempt counts."""
        await self.store.apply([decide(claimed, Lost())])

    async def crash(self) -> None:
        """Die as by `kill -9` while started: nothing is settled, nothing handed back. What ran is then rescued at once,
        as another node would after the lease.

        The handlers are cancelled, for there is no other way to stop them here; what they do about it is lost on
        nobody but what they do it to.
        """
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.die()
            binding.changed()
        await rescue(self.store, JobQuery(orphaned=True, limit=MAX_PAGE), RESCUE_TEXT)


class _Replaced:
    """A Supervisor of the application whose jobs go elsewhere for a while."""

    def __init__(self, app: Supervisor) -> None:
        self._app: Any = app
        self._was: tuple[Any, Any] = (app.store, self._app._waiters)

    def by(self, store: Store) -> None:
        self._app.store, self._app._waiters = store, Waiters(store)

    def undo(self) -> None:
        self._app.store, self._app._waiters = self._was


def workers_of(app: Supervisor) -> list[WorkerDef]:
    """The workers that a Supervisor was given."""
    known: Any = app
    return list(known._workers.values())


def _nobody() -> None:
    """The node of what is claimed without one."""


async def _end(runner: QueueRunner, settler: Settler, settling: asyncio.Task[None], herald: Herald) -> None:
    await runner.empty.wait()
    settler.close()
    await asyncio.wait({settling})
    await herald.close()
    await runner.dismiss()
    runner.close()
