"""What can be done with jobs and queues without running any: look, wait, cancel, run again, edit, pause, scale."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from msgspec import UNSET
from msgspec.structs import replace

from jobs_async.core import limits
from jobs_async.core.errors import IllegalTransition, OptionError, ResultError, StoreClosed, StoreError
from jobs_async.core.events import JobCancelled, QueueEvent, QueuePaused, QueueResumed
from jobs_async.core.health import Finding, Health, SupervisorHealth
from jobs_async.core.job import FINAL, Job, JobState
from jobs_async.core.lifecycle import Patch, Transition, cancel, edit, rerun
from jobs_async.core.options import Draft, EditOptions, JobOpts
from jobs_async.core.query import JobQuery
from jobs_async.runtime import diagnosis, many
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.producer import Producer, check, reason
from jobs_async.tasks import finish_anyway

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

    from typing_extensions import Unpack

    from jobs_async.core.limits import Seconds
    from jobs_async.core.store import Node, QueueInfo

R = TypeVar("R")
LIMIT = "the limit of a queue (to run none, pause it)"


class Operator(Producer):
    """The half of a Supervisor that only needs a store."""

    # --- looking ---

    async def get(self, job_id: Job[Any] | int) -> Job[Any]:
        """Read one job, its result turned back into what its worker returns where that worker is known.

        Raises:
            JobNotFound: there is none of this id.
        """
        await self._ensure_open()
        return self._typed(await in_time(self.store.get(_id(job_id))))

    async def find(self, query: JobQuery | None = None) -> Sequence[Job[Any]]:
        """Read a page of jobs, newest first by default; go on with `after=` the last id."""
        if query is not None and not isinstance(query, JobQuery):
            raise OptionError(f"find takes a JobQuery, not a {limits.type_name(query)}")
        await self._ensure_open()
        return await in_time(self.store.select(query or JobQuery()))

    async def queues(self) -> Mapping[str, QueueInfo]:
        """What was said of queues at run time, by name: whether one is paused, and how many of its jobs may run."""
        await self._ensure_open()
        return await in_time(self.store.queues())

    async def nodes(self) -> Sequence[Node]:
        """The Supervisors that run queues on this store, those that died in the last day included."""
        await self._ensure_open()
        return await in_time(self.store.nodes())

    @property
    def node(self) -> str | None:
        """The random id under which this Supervisor is a node of its store, another one after each start and each lost
        lease; None while it runs no queues.
        """
        return self._engine.node if self._engine is not None and self._lives else None

    async def health(self) -> SupervisorHealth:
        """Whether this Supervisor is well: for readiness checks. Answers within 11 seconds, whatever the store does."""
        loop = asyncio.get_running_loop()
        began, node, holds = loop.time(), self.node, False
        try:
            store, holds = await in_time(self._ask_how_it_is(node))
        except Exception as error:
            store = Health(False, f"the store does not answer: {limits.type_name(error)}")
        return SupervisorHealth(
            up=store.up and (not self._runs_queues or (self._lives and holds)),
            store=replace(store, seconds=loop.time() - began),
            is_running=self._lives,
            node=node,
            lease_holds=holds,
            stuck=() if self._engine is None else self._engine.stuck,
        )

    async def _ask_how_it_is(self, node: str | None) -> tuple[Health, bool]:
        """How the store is, and whether it takes this node for alive."""
        await self._ensure_open()
        store = await self.store.health()
        holds = store.up and node is not None and any(one.alive for one in await self.store.nodes() if one.id == node)
        return store, holds

    @property
    def _runs_queues(self) -> bool:
        return False

    async def diagnose(self) -> Sequence[Finding]:
        """Why jobs on this store do not run, wherever they should, the worst first, with what to do about each.

        Where nothing is wrong there is one "info" of code "jobs-flow". It asks for counts, and looks at some pages of
        jobs at most.

        Raises:
            StoreError: the store does not answer.
        """
        await self._ensure_open()
        return await diagnosis.diagnose(self.store, self.clock)

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
        job_id = _id(job)
        await self._ensure_open()
        try:
            return self._typed(await self._waiters.wait(job_id, seconds))
        except TimeoutError:
            where = f"job {job_id} has not ended"
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(0.5):
                    late = await self.store.get(job_id)
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

    @overload
    def watch(self, job: Job[R], /, *, interval: Seconds = ...) -> AsyncGenerator[Job[R]]: ...
    @overload
    def watch(self, job: int, /, *, interval: Seconds = ...) -> AsyncGenerator[Job[Any]]: ...
    async def watch(self, job: Job[Any] | int, /, *, interval: Seconds = 0.5) -> AsyncGenerator[Job[Any]]:
        """The job as it is, then each record that differs (state, attempt, progress …), to the end of the job.

        Looks every `interval` seconds, and at once when a job that runs here ends; which process runs it does not
        matter. What happens and passes between two looks is not seen.

        Raises:
            JobNotFound: it is not in the store, or was deleted meanwhile.
            StoreClosed: this Supervisor was stopped meanwhile.
        """
        seconds, job_id = limits.seconds(interval, "interval", exclusive=True), _id(job)
        was_stopped, seen, record = self._was_stopped, None, await self.get(job_id)
        while True:
            if record != seen:
                yield record
            if record.state in FINAL:
                return
            if self._was_stopped and not was_stopped:  # while the record was looked at
                raise StoreClosed(f"the Supervisor was stopped before job {job_id} ended")
            seen = record
            try:
                record = self._typed(await self._waiters.wait(job_id, seconds))
            except TimeoutError:
                record = await self.get(job_id)

    def _typed(self, job: Job[Any]) -> Job[Any]:
        worker = self._workers.get(job.worker)
        if worker is None or job.result is None:
            return job
        return replace(job, result=worker.decode_result(job.result))

    # --- changing ---

    async def cancel(self, job_id: Job[Any] | int) -> Job[Any]:
        """End a waiting job at once; ask a running one to end, and cut it after 5 seconds. A worker process is cut at
        once.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it has ended already.
        """
        return await self._change(_id(job_id), cancel, self._cancelled)

    async def _cancelled(self, job: Job[Any]) -> None:
        if job.state is JobState.cancelled:
            self._waiters.settled(job)
            await self._herald.tell(lambda at: [JobCancelled(job=job, at=at, error_msg=reason(job))])
        elif self._engine is not None:
            self._engine.crew.cancel(job.id)

    async def retry(self, job_id: Job[Any] | int) -> Job[Any]:
        """Make an ended job, or one that waits for its time, available now; an ended one gets all its attempts anew.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it is available or running already.
            UniqueConflict: a live job holds its unique key.
        """
        return await self._change(_id(job_id), rerun, self._waits)

    async def _waits(self, job: Job[Any]) -> None:
        if self._engine is not None:
            self._engine.crew.nudge(job.queue)

    async def edit(self, job_id: Job[Any] | int, *, args: object = UNSET, **options: Unpack[EditOptions]) -> Job[Any]:
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

        def change(row: Job[Any]) -> Transition:
            worker = self._workers.get(row.worker)
            if draft is not None and worker is not None:
                check(worker, draft)
            return edit(row, Patch(args_json=UNSET if draft is None else draft.args_json, **opts), delay)

        return await self._change(_id(job_id), change, self._waits)

    async def delete(self, job_id: Job[Any] | int) -> None:
        """Remove a job that is not executing.

        Raises:
            JobNotFound: there is none of this id.
            IllegalTransition: it is executing; cancel it first.
        """
        job_id = _id(job_id)
        await self._ensure_open()
        if not await in_time(self.store.delete([job_id])):
            await in_time(self.store.get(job_id))
            raise IllegalTransition(f"job {job_id} is executing; cancel it first")

    # --- changing many ---

    async def cancel_all(self, query: JobQuery) -> int:
        """Cancel every job of a query that has not ended; how many were cancelled, or asked to end.

        The query's `limit` does not count: all that match are meant, and each is seen once. Jobs that move at the same
        moment are left alone.
        """
        await self._ensure_open()
        return await many.change_all(self.store, query, many.cancel_once, self._cancelled)

    async def retry_all(self, query: JobQuery) -> int:
        """Make every job of a query available now that is not available or running already; how many there were.
        Completed jobs run again only where `states` name them.

        Redrives dead letters: `retry_all(JobQuery(states=[JobState.discarded], worker="resize", error="Timeout"))`. Of
        jobs with one unique key the first comes to life. As `cancel_all` otherwise.
        """
        await self._ensure_open()
        return await many.change_all(self.store, many.but_completed(query), rerun, self._waits)

    async def delete_all(self, query: JobQuery) -> int:
        """Remove every job of a query that is not executing; how many there were. As `cancel_all` otherwise."""
        await self._ensure_open()
        return await many.delete_all(self.store, query)

    async def _change(
        self, job_id: int, decide: Callable[[Job[Any]], Transition], then: Callable[[Job[Any]], Awaitable[None]]
    ) -> Job[Any]:
        """Read, decide, apply, again when the job moved in between; `then` follows even where the caller has gone."""
        await self._ensure_open()

        async def change() -> Job[Any]:
            while True:
                step = decide(await in_time(self.store.get(job_id)))
                (job,) = await in_time(self.store.apply([step]))
                if job is not None:
                    await then(job)
                    return job

        return await finish_anyway(change())

    # --- queues ---

    async def pause_queue(self, queue: str) -> None:
        """Let no claim that begins from now on return a job, on any node, across restarts; running jobs go on."""
        await self._say(queue, QueuePaused, paused=True)

    async def resume_queue(self, queue: str) -> None:
        """Undo `pause_queue`."""
        await self._say(queue, QueueResumed, paused=False)

    async def scale_queue(self, queue: str, limit: int | None) -> None:
        """Run at most so many jobs of a queue at once, on each node, across restarts; lowering it lets running ones
        finish. None takes it back: each node runs as many as it was started with.
        """
        await self._say(queue, None, limit=0 if limit is None else limits.integer(limit, LIMIT, 1))

    async def _say(
        self, queue: str, event: type[QueueEvent] | None, *, paused: bool | None = None, limit: int | None = None
    ) -> None:
        """Write it down, tell of a change and heed it here, even where the caller has gone."""
        limits.name(queue, "queue")
        await self._ensure_open()

        async def say() -> None:
            changed = await in_time(self.store.set_queue(queue, paused=paused, limit=limit))
            if self._engine is not None:
                self._engine.crew.nudge(queue)
                if limit is not None:
                    self._engine.crew.resize(queue, limit)
            if changed:
                await self._herald.tell(lambda at: [] if event is None else [event(queue=queue, at=at)])

        await finish_anyway(say())


def _id(job: Job[Any] | int) -> int:
    return limits.integer(job.id if isinstance(job, Job) else job, "a job's id", 0, 2**63 - 1)
