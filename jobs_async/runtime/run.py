"""One attempt of one job: the boundary around its handler, from the claim to an Outcome.

Whatever a handler does ends here as a value. Why it was cancelled is written down before it is, never guessed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from anyio import CapacityLimiter

from jobs_async.core import limits
from jobs_async.core.context import CancelCause, current
from jobs_async.core.errors import ArgsError, JobsError, OptionError, StaleClaim, UnreadableArgs
from jobs_async.core.job import Job, JobState, Progress
from jobs_async.core.lifecycle import Patch, Transition, decide
from jobs_async.core.outcome import (
    Cancel,
    Cancelled,
    Completed,
    Discard,
    Discarded,
    Failed,
    Failure,
    Interrupted,
    Outcome,
    Snooze,
    Snoozed,
    storable,
)
from jobs_async.core.store import JobQuery
from jobs_async.runtime.backoff import default_delay, retry_delay
from jobs_async.runtime.failures import Told, failure_of
from jobs_async.runtime.joining import joined
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.whereabouts import of_coroutine, of_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs_async.core.options import Draft
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.host import Host
    from jobs_async.runtime.processes import Processes

logger = logging.getLogger("jobs_async")

NEVER = float("inf")
STUCK_AFTER = 3.0
"""Seconds after which a handler that was told to end, and does not, is reported."""


Cause = CancelCause


class Flag:
    """Tells a handler to come to an end; makes an asyncio.Event only for those who wait for it."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> bool:
        if self._event is None:
            self._event = asyncio.Event()
            if self._set:
                self._event.set()
        return await self._event.wait()

    def set(self) -> None:
        self._set = True
        if self._event is not None:
            self._event.set()


class Run:
    """A claimed job on its way through its handler; to the handler it is the JobContext."""

    __slots__ = (
        "_done",
        "_in_thread",
        "_is_cut",
        "_loop",
        "_stuck",
        "_thread",
        "began_at",
        "cancelled",
        "cause",
        "completion",
        "deadline_at",
        "duration",
        "host",
        "is_slow",
        "is_stale",
        "is_stuck",
        "job",
        "outcome",
        "retry_in",
        "task",
        "worker",
    )

    def __init__(self, job: Job[Any], worker: WorkerDef, host: Host) -> None:
        self.job = job
        self.worker = worker
        self.host = host
        self.cancelled = Flag()
        self.cause: Cause | None = None
        self.outcome: Outcome | None = None
        self.completion: Transition | None = None
        """What the handler has asked of a transaction of its own, whether that was committed or not."""
        self.task: asyncio.Task[None] | None = None
        self.retry_in = 0.0
        self._in_thread = False
        self._thread: int | None = None
        self._is_cut = False
        self.is_stuck = False
        self.is_slow = False
        self.is_stale = False
        self.duration = 0.0
        self.deadline_at = NEVER
        self.began_at = 0.0

    # --- what the handler sees ---

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def correlation_id(self) -> str | None:
        return self.job.correlation_id

    @property
    def deadline(self) -> datetime | None:
        if self.deadline_at == NEVER:
            return None
        left = self.deadline_at - self._loop.time()
        return self.host.clock.now() + timedelta(seconds=left)

    async def progress(self, fraction: float, note: str = "") -> None:
        given: object = fraction
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given <= 1:
            raise OptionError("progress must be a fraction from 0 to 1")
        if note:
            limits.name(note, "the note of a progress")
        if self.completion is not None:
            return  # its own transaction may hold the row, and would wait for itself
        patch = Patch(progress=Progress(float(fraction), note))
        for _ in range(2):
            (job,) = await in_time(self.host.store.apply([Transition(self.job, self.job.state, patch=patch)]))
            if job is not None:
                self.job = job
                return
            rows = await in_time(self.host.store.select(JobQuery(ids=[self.job.id])))
            if not rows or (rows[0].state, rows[0].claim) != (self.job.state, self.job.claim):
                return
            self.job = rows[0]  # somebody asked to cancel it meanwhile; it is still ours

    async def complete(self, *, connection: object, result: object = None) -> None:
        if self.outcome is not None or current.get(self) is not self:
            raise OptionError(f"complete() is for the handler of job {self.job.id}, while that runs")
        if connection is None:
            raise OptionError("complete() needs the connection= of a transaction; without one, return the result")
        text = None if result is None else self.worker.encode_result(result)
        before, step = self.completion, Transition(self.job, JobState.completed, result=text)
        self.completion = step  # before it is written, for an answer may get lost
        job = None
        try:
            if not self.job.cancel_requested:
                (job,) = await joined(self.host.store, "apply", [step], connection)
        except OptionError:
            self.completion = before
            raise
        if job is None:
            self.completion = before
            raise await self._refused()

    async def _refused(self) -> JobsError:
        """Why the fence did not let a completion through, as it looks from outside of the handler's transaction."""
        found = await in_time(self.host.store.select(JobQuery(ids=[self.job.id])))
        row = found[0] if found and found[0].claim == self.job.claim else None
        name = f"job {self.job.id}"
        if self.completion is not None and row is not None and row.state is JobState.completed:
            return StaleClaim(f"{name} is completed already, by a transaction of this run")
        if row is None or row.state is not JobState.executing:
            self.is_stale = True
            return StaleClaim(f"{name} is no longer held by this run: it was rescued, replaced or ended meanwhile")
        if row.cancel_requested:
            self.job, self.is_stale = row, True
            return StaleClaim(f"somebody has asked to cancel {name}")
        text = "does not see this run: it has completed it already, or it began before the job was claimed"
        return OptionError(f"the transaction on connection= {text}")

    async def enqueue(self, draft: Draft[Any], *, connection: object = None) -> Job[Any]:
        return await self.host.enqueue(draft, connection=connection)

    # --- what the runtime does with it ---

    def start(
        self,
        threads: CapacityLimiter,
        processes: Processes,
        done: Callable[[Run], None],
        stuck: Callable[[Run], None],
    ) -> None:
        """Run the handler in a task of its own; `done` is called when it has really ended, `stuck` when it will not."""
        loop = asyncio.get_running_loop()
        self._loop, self.began_at = loop, loop.time()
        if self.job.timeout_seconds is not None:
            self.deadline_at = self.began_at + self.job.timeout_seconds
        self._done, self._stuck = done, stuck
        self.task = asyncio.Task(self._guard(threads, processes), loop=loop, name=self.job.worker)

    def never_began(self, _task: asyncio.Task[None] | None = None) -> None:
        """A task cancelled before its first step never runs a line of its own; harmless for every other."""
        if self.outcome is None and self.task is not None and self.task.done():
            self.outcome = self._judge(asyncio.CancelledError())
            self.retry_in = default_delay(max(0, self.job.attempt - 1), self.host)
            self._done(self)

    def warn(self, cause: Cause) -> None:
        """Tell the handler that its end has come; the first cause counts."""
        if self.cause is None:
            self.cause = cause
        self.cancelled.set()

    def stop(self, cause: Cause) -> None:
        """Tell it, and cancel its task, once; a thread cannot be cancelled and keeps its slot until it ends."""
        self.warn(cause)
        if self.task is None or self._is_cut:
            return
        self._is_cut = True
        self._loop.call_later(STUCK_AFTER, self._find_stuck)
        if not self._in_thread:
            self.task.add_done_callback(self.never_began)
            self.task.cancel()

    def _find_stuck(self) -> None:
        if self.outcome is None:
            self.is_stuck = True
            self._stuck(self)

    def whereabouts(self) -> tuple[str, ...]:
        """The handler's last calls right now, innermost last; () in a process, and when it has ended."""
        if self.worker.process or self.task is None:
            return ()
        if self._in_thread:
            return of_thread(self._thread, Run._in_a_thread.__name__)
        return of_coroutine(self.task.get_coro())

    async def _guard(self, threads: CapacityLimiter, processes: Processes) -> None:
        """The boundary: nothing a handler raises gets out, not even what would end the loop."""
        current.set(self)
        value, raised = None, None
        try:
            if self.host.instruments:
                with self.host.instruments.running(self):
                    value = await self._call(threads, processes)
            else:
                value = await self._call(threads, processes)
        except BaseException as error:
            raised = error
        try:
            self.outcome = self._judge(raised, value)
            if isinstance(self.outcome, Failed):
                await self._prepare_retry(raised)
        except BaseException as error:  # cancelled meanwhile, or text that cannot be read
            if self.outcome is None:
                self.outcome = Failed(failure_of(error))
            if isinstance(self.outcome, Failed):
                self.retry_in = default_delay(max(0, self.job.attempt - 1), self.host)
        raised = None  # its traceback holds this frame
        self.duration = self._loop.time() - self.began_at
        self._done(self)

    async def _call(self, threads: CapacityLimiter, processes: Processes) -> Any:
        if self.worker.is_async:
            return await self.worker.invoke(self.job.args_json, self)
        if self.worker.process:
            return await processes.run(self.worker, self.job)
        self._in_thread = True
        value = await anyio.to_thread.run_sync(self._in_a_thread, limiter=threads)
        self._in_thread = False
        if self.cause is not None and inspect.iscoroutine(value):
            value.close()
            raise asyncio.CancelledError  # what it was to do has not been done
        return await value if inspect.isawaitable(value) else value

    def _in_a_thread(self) -> Any:
        self._thread = threading.get_ident()
        try:
            return self.worker.invoke(self.job.args_json, self)
        finally:
            self._thread = None  # another job may be next in this thread

    def _judge(self, error: BaseException | None, value: Any = None) -> Outcome:
        """What the end of the handler means, given why it was cancelled, if it was."""
        if error is None and self.cause is None:
            return Completed(self._pack(value))
        if self.cause is Cause.TIMEOUT:
            return Failed(Failure("Timeout", f"timeout: ran for more than {self.job.timeout_seconds:g} seconds"))
        if self.cause is Cause.CANCELLED:
            return Cancelled(Cause.CANCELLED.value, None if error else self._pack(value))
        match error:
            case None:
                return Completed(self._pack(value))
            case Snooze(seconds=seconds):
                return Snoozed(seconds)
            case Cancel():
                return Cancelled(storable(str(error)))
            case Discard() | UnreadableArgs() | Told(is_final=True):
                return Discarded(failure_of(error))
            case asyncio.CancelledError() if self.cause is not None:
                return Interrupted()
            case StaleClaim() if self.is_stale:
                return Interrupted()  # which the fence refuses, or a requested cancellation overrules
            case _:
                return Failed(failure_of(error))

    def _pack(self, value: Any) -> str | None:
        """A result as JSON; one that has none does not undo the work that was done."""
        if value is None:
            return None
        if self.worker.process:
            return str(value)  # it is JSON already
        try:
            return self.worker.encode_result(value)
        except ArgsError as error:
            logger.warning("job %d (%s) completed, but its %s", self.job.id, self.job.worker, error)
            return None

    async def _prepare_retry(self, error: BaseException | None) -> None:
        """Find out when to try again, and tell the log what happened."""
        job, then = self.job, "no attempt is left"
        if job.attempt < job.max_attempts:
            self.retry_in = await retry_delay(self.worker, max(0, job.attempt - 1), self.host)
            then = f"next in {self.retry_in:.1f} s"
        if self.completion is not None:
            then = "it stays completed if the transaction that it called complete() in was committed"
        told = None if self.cause is Cause.TIMEOUT else error
        what = "timed out" if told is None else "failed"
        if isinstance(told, Told):  # our own traceback would say nothing about it
            then, told = f"{then}\n{told.trace or told}", None
        logger.warning(
            "job %d (%s) %s in attempt %d of %d; %s",
            job.id,
            job.worker,
            what,
            job.attempt,
            job.max_attempts,
            then,
            exc_info=told,
        )

    def step(self) -> Transition:
        """The transition that follows."""
        return decide(self.job, self.outcome or Interrupted(), self.retry_in)
