"""What can be done with jobs and queues without running any: enqueue, look, wait, pause, cancel, run again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from msgspec import UNSET
from msgspec.structs import replace

from jobs_async.clock import SystemClock
from jobs_async.core import limits
from jobs_async.core.context import current
from jobs_async.core.errors import (
    ArgsError,
    IllegalTransition,
    OptionError,
    ResultError,
    UnreadableArgs,
    WorkerNotFound,
)
from jobs_async.core.events import Event, JobCancelled, JobDuplicate, JobEnqueued, QueuePaused, QueueResumed
from jobs_async.core.job import Job, JobState
from jobs_async.core.lifecycle import Patch, Transition, cancel, edit, rerun
from jobs_async.core.options import NO_OPTIONS, Draft, EditOptions, JobOpts, NewJob
from jobs_async.core.store import MAX_PAGE, Clock, JobQuery, Store, validate_store
from jobs_async.runtime.herald import Herald
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.waiting import Waiters
from jobs_async.stores.urls import store_from_url
from jobs_async.tasks import finish_anyway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from typing_extensions import Unpack

    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import EnqueueOptions
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.engine import Engine
    from jobs_async.telemetry import Telemetry

R = TypeVar("R")
MAX_BATCH = 10_000
CLOSE_SECONDS = 1.0
"""How long a stop waits for the store to close."""

logger = logging.getLogger("jobs_async")


class Operator:
    """The half of a Supervisor that only needs a store. Its operations open the store when nobody has yet."""

    def __init__(
        self,
        store: Store | str = "memory://",
        *,
        telemetry: Telemetry | None = None,
        strict: bool = False,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self.store = store_from_url(store) if isinstance(store, str) else validate_store(store)
        self.telemetry = telemetry
        self.clock: Clock = clock or SystemClock()
        self.rng = rng or Random()  # spreads retries and polls, keeps no secret
        self._strict = strict
        self._workers: dict[str, WorkerDef] = {}
        self._engine: Engine | None = None
        self._opened_by_us = False
        self._opening = asyncio.Lock()
        self._waiters = Waiters(self.store)
        self._herald = Herald(telemetry, self.clock)

    # --- jobs in ---

    @overload
    async def enqueue(self, draft: Draft[R], /, *, connection: object = ...) -> Job[R]: ...
    @overload
    async def enqueue(
        self, worker: str, args: object = ..., /, opts: JobOpts | None = ..., **options: Unpack[EnqueueOptions]
    ) -> Job[Any]: ...
    async def enqueue(
        self,
        worker: str | Draft[Any],
        args: object = None,
        /,
        opts: JobOpts | None = None,
        **options: Any,
    ) -> Job[Any]:
        """Store one job; when this returns it is durable, save inside a transaction of your own (`connection=`).

        By name, as in the source: arguments are any JSON value, options are keywords, or `opts`, or both with the
        keywords winning; or a Draft. A name that no worker here bears is accepted, unless `strict`.

        Raises:
            OptionError, ArgsError: what was given cannot be stored, or does not fit a worker that is registered here.
            WorkerNotFound: `strict`, and no worker of this name is registered.
            UniqueConflict: UniqueStrategy.REJECT met a live job.
            StoreFull, StoreBusy: there is no room, or no access.
        """
        connection = options.pop("connection", None)
        if isinstance(worker, Draft):
            if args is not None or opts is not None or options:
                raise OptionError("a Draft brings its own arguments and options")
            draft = worker
        else:
            if opts is not None and not isinstance(opts, JobOpts):
                raise OptionError(f"opts must be JobOpts, not {limits.type_name(opts)}")
            draft = Draft(worker, args, JobOpts(**options).over(opts or NO_OPTIONS))
        return (await self.enqueue_many([draft], connection=connection))[0]

    async def enqueue_many(self, drafts: Iterable[Draft[R]], /, *, connection: object = None) -> list[Job[R]]:
        """Store all of these jobs, or none; in their order. At most 10,000.

        Raises:
            As `enqueue`.
        """
        given: object = drafts
        if not isinstance(given, Iterable):
            raise OptionError(f"enqueue_many takes Drafts, not a {limits.type_name(given)}")
        new = [self._decided(draft) for draft in drafts]
        if len(new) > MAX_BATCH:
            raise OptionError(f"enqueue at most {MAX_BATCH:,} jobs at once, not {len(new):,}")
        if not new:
            return []
        await self._ensure_open()
        if connection is None:
            return await finish_anyway(self._insert(new))
        jobs = await self._insert_within(new, connection)
        await self._announce(jobs, in_transaction=True)
        return jobs

    async def _insert(self, new: Sequence[NewJob]) -> list[Job[Any]]:
        """What is stored is told of and started, even where the caller no longer waits for it."""
        jobs = await in_time(self.store.insert(new))
        await self._announce(jobs, in_transaction=False)
        return jobs

    def _decided(self, draft: Draft[Any]) -> NewJob:
        """call > worker > default; the correlation id of the job that enqueues is passed on."""
        if not isinstance(draft, Draft):
            raise OptionError(f"enqueue_many takes Drafts, not a {limits.type_name(draft)}")
        worker = self._workers.get(draft.worker)
        if worker is None and self._strict:
            raise WorkerNotFound(f"no worker {draft.worker!r} is registered with this Supervisor, which is strict")
        opts = draft.opts
        if worker is not None:
            opts = opts.over(worker.opts)
            if not draft.is_checked:
                _check(worker, draft)
        context = current.get(None)
        if context is not None and opts.correlation_id is None and context.correlation_id is not None:
            opts = opts.over(JobOpts(correlation_id=context.correlation_id))
        return NewJob.of(draft.worker, draft.args_json, opts)

    async def _insert_within(self, new: Sequence[NewJob], connection: object) -> list[Job[Any]]:
        insert: Any = self.store.insert
        try:
            return list(await insert(new, connection=connection))
        except TypeError as error:
            if "connection" not in str(error):
                raise
            raise OptionError(f"{type(self.store).__name__} has no transactions to join with connection=") from None

    async def _announce(self, jobs: Sequence[Job[Any]], *, in_transaction: bool) -> None:
        """Tell of new jobs, then wake who is to run them; a transaction that is still open wakes nobody."""
        if self._herald.is_heard:
            replaced = [] if in_transaction else await self._replaced_by(jobs)
            await self._herald.tell(lambda at: _arrivals(jobs, replaced, in_transaction, at))
        if self._engine is None or in_transaction:
            return
        for job in jobs:
            self._engine.crew.nudge(job.queue)
            if job.replaces is not None:
                self._engine.crew.cancel(job.replaces)

    async def _replaced_by(self, jobs: Sequence[Job[Any]]) -> list[Job[Any]]:
        """The records of the jobs that these have replaced."""
        ids = [job.replaces for job in jobs if job.replaces is not None]
        found: list[Job[Any]] = []
        try:
            for start in range(0, len(ids), MAX_PAGE):
                query = JobQuery(ids=ids[start : start + MAX_PAGE], limit=MAX_PAGE)
                found += await in_time(self.store.select(query))
        except Exception:
            logger.exception("replaced jobs could not be read; their events are missing")
        return found

    # --- looking ---

    async def get(self, job_id: int) -> Job[Any]:
        """Read one job, its result turned back into what its worker returns where that worker is known.

        Raises:
            JobNotFound: there is none of this id.
        """
        await self._ensure_open()
        return self._typed(await in_time(self.store.get(job_id)))

    async def find(self, query: JobQuery | None = None) -> Sequence[Job[Any]]:
        """Read a page of jobs, newest first by default; go on with `after=` the last id."""
        if query is not None and not isinstance(query, JobQuery):
            raise OptionError(f"find takes a JobQuery, not a {limits.type_name(query)}")
        await self._ensure_open()
        return await in_time(self.store.select(query or JobQuery()))

    async def counts(self) -> Mapping[tuple[str, JobState], int]:
        """How many jobs each queue has in each state; nothing where there is none."""
        await self._ensure_open()
        return await in_time(self.store.tally())

    @overload
    async def wait(self, job: Job[R], /, *, timeout: Seconds | None = ...) -> Job[R]: ...
    @overload
    async def wait(self, job: int, /, *, timeout: Seconds | None = ...) -> Job[Any]: ...
    async def wait(self, job: Job[Any] | int, /, *, timeout: Seconds | None = None) -> Job[Any]:
        """The job's record once it is completed, discarded or cancelled, whichever process runs it.

        Raises:
            JobNotFound: it is not in the store, or was deleted meanwhile.
            TimeoutError: it has not ended within `timeout` seconds; it goes on.
            StoreClosed: this Supervisor was stopped meanwhile.
        """
        seconds = None if timeout is None else limits.seconds(timeout, "timeout")
        job_id = limits.integer(job.id if isinstance(job, Job) else job, "a job's id", 0, 2**63 - 1)
        await self._ensure_open()
        try:
            return self._typed(await self._waiters.wait(job_id, seconds))
        except TimeoutError:
            late = await in_time(self.store.get(job_id))
            where = f"job {job_id} ({late.worker}) is still {late.state.name} in queue {late.queue!r}"
            raise TimeoutError(f"{where} after {seconds:g} seconds; it goes on") from None

    async def result(self, job: Job[R], /, *, timeout: Seconds | None = None) -> R:
        """What the job's worker returned.

        Raises:
            ResultError: it was discarded or cancelled; its `job` says why.
            JobNotFound, TimeoutError: as `wait`.
        """
        ended = await self.wait(job, timeout=timeout)
        if ended.state is not JobState.completed:
            raise ResultError(ended)
        return cast("R", ended.result)

    def _typed(self, job: Job[Any]) -> Job[Any]:
        worker = self._workers.get(job.worker)
        if worker is None or job.result is None:
            return job
        return replace(job, result=worker.decode_result(job.result))

    # --- changing ---

    async def cancel(self, job_id: int) -> Job[Any]:
        """End a waiting job at once; ask a running one to end, and cut it after 5 seconds.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it has ended already.
        """
        job = await self._change(job_id, cancel)
        if job.state is JobState.cancelled:
            self._waiters.settled(job)
            await self._herald.tell(lambda at: [JobCancelled(job=job, at=at, error_msg=_reason(job))])
        elif self._engine is not None:
            self._engine.crew.cancel(job_id)
        return job

    async def retry(self, job_id: int) -> Job[Any]:
        """Make an ended job, or one that waits for its time, available now; an ended one gets all its attempts anew.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it is available or running already.
            UniqueConflict: a live job holds its unique key.
        """
        job = await self._change(job_id, rerun)
        if self._engine is not None:
            self._engine.crew.nudge(job.queue)
        return job

    async def edit(self, job_id: int, *, args: object = UNSET, **options: Unpack[EditOptions]) -> Job[Any]:
        """Change a job that waits: its arguments, priority, queue, number of attempts, or when it is due.

        `args` are what the job stores, for a function worker its parameters by name. `delay=0` makes it due now. What
        is not given stays. It takes effect as a whole or not at all, and never on a job that has been claimed.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it is executing, or has ended.
            ArgsError: the arguments cannot be stored, or do not fit a worker that is registered here.
            OptionError: an option is out of bounds, or not one that can be edited.
        """
        unknown = sorted(options.keys() - EditOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(["args", *EditOptions.__annotations__])
            raise OptionError(f"{unknown[0]!r} cannot be edited; what can: {known}")
        opts = {key: value for key, value in JobOpts(**options).given.items() if value is not None}
        delay = opts.pop("delay", None)
        draft = None if args is UNSET else Draft[Any]("edited", args)

        def change(job: Job[Any]) -> Transition:
            worker = self._workers.get(job.worker)
            if draft is not None and worker is not None:
                _check(worker, draft)
            return edit(job, Patch(args_json=UNSET if draft is None else draft.args_json, **opts), delay)

        job = await self._change(job_id, change)
        if self._engine is not None:
            self._engine.crew.nudge(job.queue)
        return job

    async def delete(self, job_id: int) -> None:
        """Remove a job that is not executing.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it is executing; cancel it first.
        """
        await self._ensure_open()
        if not await in_time(self.store.delete([job_id])):
            await in_time(self.store.get(job_id))
            raise IllegalTransition(f"job {job_id} is executing; cancel it first")

    async def _change(self, job_id: int, decide: Callable[[Job[Any]], Transition]) -> Job[Any]:
        """Read, decide, apply; again when the job moved in between."""
        await self._ensure_open()
        while True:
            step = decide(await in_time(self.store.get(job_id)))
            (job,) = await in_time(self.store.apply([step]))
            if job is not None:
                return job

    # --- queues ---

    async def pause_queue(self, queue: str) -> None:
        """Let no claim that begins from now on return a job, on any node, across restarts; running jobs go on."""
        await self._ensure_open()
        if await in_time(self.store.set_queue(limits.name(queue, "queue"), paused=True)):
            await self._herald.tell(lambda at: [QueuePaused(queue=queue, at=at)])

    async def resume_queue(self, queue: str) -> None:
        """Undo `pause_queue`."""
        await self._ensure_open()
        if await in_time(self.store.set_queue(limits.name(queue, "queue"), paused=False)):
            await self._herald.tell(lambda at: [QueueResumed(queue=queue, at=at)])
        if self._engine is not None:
            self._engine.crew.nudge(queue)

    async def scale_queue(self, queue: str, limit: int | None) -> None:
        """Run at most so many jobs of a queue at once, on each node, across restarts; lowering it lets running ones
        finish. None takes it back: each node runs as many as it was started with.
        """
        await self._ensure_open()
        said = 0 if limit is None else limits.integer(limit, "limit", 1)
        await in_time(self.store.set_queue(limits.name(queue, "queue"), limit=said))
        if self._engine is not None:
            self._engine.crew.resize(queue, limit)

    # --- the store's life time ---

    async def _ensure_open(self) -> None:
        """Open a store that was given closed; only what we opened do we close."""
        if self.store.is_open:
            return
        async with self._opening:
            if not self.store.is_open:
                await self.store.open()
                self._opened_by_us = True

    async def _close_store(self) -> None:
        if self._opened_by_us:
            self._opened_by_us = False
            closing = asyncio.get_running_loop().create_task(self.store.close(), name="jobs_async closing")
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)


def _check(worker: WorkerDef, draft: Draft[Any]) -> None:
    """What does not fit a worker that is known here is refused here."""
    try:
        worker.check(draft.args_json)
    except UnreadableArgs as error:
        raise ArgsError(str(error)) from None


def _arrivals(
    jobs: Sequence[Job[Any]], replaced: Sequence[Job[Any]], in_transaction: bool, at: datetime
) -> Iterator[Event]:
    """What an enqueue tells of: whom it replaced, then what came in."""
    for old in replaced:
        yield JobCancelled(job=old, at=at, error_msg=_reason(old))
    for job in jobs:
        if job.duplicate:
            yield JobDuplicate(job=job, at=at)
        else:
            yield JobEnqueued(job=job, at=at, in_transaction=in_transaction)


def _reason(job: Job[Any]) -> str | None:
    return job.last_error.error if job.last_error else None
