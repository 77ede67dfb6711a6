"""Jobs in: what an enqueue decides, stores and tells of, and the life time of the store it goes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, overload

from jobs_async.clock import SystemClock
from jobs_async.core import limits
from jobs_async.core.context import current
from jobs_async.core.errors import ArgsError, OptionError, UnreadableArgs, WorkerNotFound
from jobs_async.core.events import Event, JobCancelled, JobDuplicate, JobEnqueued
from jobs_async.core.options import NO_OPTIONS, Draft, JobOpts, NewJob
from jobs_async.core.store import MAX_PAGE, Clock, JobQuery, Store, validate_store
from jobs_async.runtime.herald import Herald
from jobs_async.runtime.host import clock_of
from jobs_async.runtime.instruments import Instruments
from jobs_async.runtime.joining import joined
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.waiting import Waiters
from jobs_async.stores.urls import store_from_url
from jobs_async.tasks import finish_anyway
from jobs_async.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from typing_extensions import Unpack

    from jobs_async.core.instrument import Instrument
    from jobs_async.core.job import Job
    from jobs_async.core.options import EnqueueOptions
    from jobs_async.core.schedule import CronEntry
    from jobs_async.core.store import Tick
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.engine import Engine

R = TypeVar("R")
MAX_BATCH = 10_000
MAX_BATCH_BYTES = 64 * 2**20
"""Of arguments in one call: what a database takes within the time that a call may take."""
CLOSE_SECONDS = 1.0
"""How long a stop waits for the store to close."""

logger = logging.getLogger("jobs_async")


class Producer:
    """The part of a Supervisor that enqueues. Opens the store when nobody has yet."""

    def __init__(
        self,
        store: Store | str = "memory://",
        *,
        telemetry: Telemetry | None = None,
        instruments: Iterable[Instrument] = (),
        strict: bool = False,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        if telemetry is not None and not isinstance(telemetry, Telemetry):
            raise OptionError(
                f"telemetry must be a Telemetry, not {limits.type_name(telemetry)}; attach handlers to one"
            )
        self.store = store_from_url(store, clock) if isinstance(store, str) else validate_store(store)
        self.telemetry = telemetry
        self.clock: Clock = clock or SystemClock()
        self.rng = rng or Random()  # spreads retries and polls, keeps no secret
        self.instruments = Instruments(instruments)
        self._strict = strict
        self._workers: dict[str, WorkerDef] = {}
        self._crons: dict[str, CronEntry] = {}
        self._engine: Engine | None = None
        self._was_stopped = False
        self._opened_by_us = False
        self._opening = asyncio.Lock()
        self._waiters = Waiters(self.store)
        self._herald = Herald(telemetry, clock_of(self))

    @property
    def is_running(self) -> bool:
        """From the end of a start to the end of the stop that follows."""
        return self._lives

    @property
    def is_stopped(self) -> bool:
        """After a stop; a new start undoes it."""
        return self._was_stopped

    @property
    def _lives(self) -> bool:
        return self._engine is not None and self._engine.is_alive

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
            if not isinstance(worker, str):
                kind = limits.type_name(worker)
                raise OptionError(f"enqueue takes a name or a Draft, not a {kind}; a worker has an enqueue of its own")
            if opts is not None and not isinstance(opts, JobOpts):
                raise OptionError(f"opts must be JobOpts, not {limits.type_name(opts)}")
            draft = Draft(worker, args, JobOpts(**options).over(opts or NO_OPTIONS))
        return (await self.enqueue_many([draft], connection=connection))[0]

    async def enqueue_many(self, drafts: Iterable[Draft[R]], /, *, connection: object = None) -> list[Job[R]]:
        """Store all of these jobs, or none; in their order. At most 10,000, with 64 MiB of arguments in all.

        Raises:
            As `enqueue`.
        """
        given: object = drafts
        if not isinstance(given, Iterable):
            raise OptionError(f"enqueue_many takes a list of Drafts, not one {limits.type_name(given)}")
        new = [self._decided(draft) for draft in drafts]
        if len(new) > MAX_BATCH:
            raise OptionError(f"enqueue at most {MAX_BATCH:,} jobs at once, not {len(new):,}")
        if sum(len(item.args_json) for item in new) > MAX_BATCH_BYTES:
            raise OptionError(f"enqueue at most {MAX_BATCH_BYTES >> 20} MiB of arguments at once; in several calls")
        if not new:
            return []
        await self._ensure_open()
        with self.instruments.enqueuing(new) as marked:
            if connection is None:
                return await finish_anyway(self._insert(marked))
            jobs = await joined(self.store, "insert", marked, connection)
        await self._announce(jobs, in_transaction=True)
        return jobs

    async def _insert(self, new: Sequence[NewJob], tick: Tick | None = None) -> list[Job[Any]]:
        """What is stored is told of and started, even where the caller no longer waits for it."""
        jobs = await in_time(self.store.insert(new, tick=tick))
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
                check(worker, draft)
        context = current.get(None)
        if context is not None and opts.correlation_id is None and context.correlation_id is not None:
            opts = opts.over(JobOpts(correlation_id=context.correlation_id))
        return NewJob.of(draft.worker, draft.args_json, opts)

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

    # --- the store's life time ---

    async def _ensure_open(self) -> None:
        """Open a store that was given closed; only what we opened do we close."""
        if self.store.is_open:
            return
        async with self._opening:
            if not self.store.is_open:
                await in_time(self.store.open())
                self._opened_by_us = True

    async def _close_store(self) -> None:
        if self._opened_by_us:
            self._opened_by_us = False
            closing = asyncio.get_running_loop().create_task(self.store.close(), name="jobs_async closing")
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)


def check(worker: WorkerDef, draft: Draft[Any]) -> None:
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
        yield JobCancelled(job=old, at=at, error_msg=reason(old))
    for job in jobs:
        if job.duplicate:
            yield JobDuplicate(job=job, at=at)
        else:
            yield JobEnqueued(job=job, at=at, in_transaction=in_transaction)


def reason(job: Job[Any]) -> str | None:
    return job.last_error.error if job.last_error else None
