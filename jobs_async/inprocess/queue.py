"""Queues in memory: they hold jobs, and run them one after the other when they are told to."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs_async.inprocess.calling import call, call_async, cancellations, is_cancelled, refuse_async
from jobs_async.inprocess.errors import JobError, QueueRunning
from jobs_async.inprocess.protocols import name_of
from jobs_async.inprocess.report import JobReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from jobs_async.inprocess.protocols import AsyncJob, Job
    from jobs_async.inprocess.runner import ObservedJobRunner


class _Held:
    """The jobs of a queue under the names they had when they were pushed, and who may run them."""

    def __init__(self) -> None:
        self._jobs: list[tuple[str, Job]] = []
        self._running = threading.Lock()

    def __len__(self) -> int:
        return len(self._jobs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} jobs>"

    def clear(self) -> None:
        """Forget all jobs. A `run_all` under way goes on with those it began with."""
        self._jobs.clear()

    @contextmanager
    def _one_run(self) -> Generator[tuple[tuple[str, Job], ...]]:
        """The jobs to run: those held now, so that jobs that push jobs come to an end."""
        if not self._running.acquire(blocking=False):
            raise QueueRunning("this queue runs its jobs already; wait for that run_all to end")
        try:
            yield tuple(self._jobs)
        finally:
            self._running.release()


class JobQueue(_Held):
    """Runs sync jobs in the calling thread, in the order in which they were pushed (nidus-jobs: JobQueue).

    Jobs are retained: a second `run_all` runs them again, and `clear` forgets them. `len(queue)` counts them, and an
    empty queue is false. `push`, `clear` and `len` may be called from any thread, and from a job: what a job pushes
    while the queue runs is run by the next `run_all`.
    """

    def push(self, job: Job) -> None:
        """Put a job at the end.

        Raises:
            JobTypeError: it is no job, or an async one.
            OptionError: its name is not 1 to 255 bytes of text.
        """
        name = name_of(job)
        refuse_async(job, "an AsyncJobQueue")
        self._jobs.append((name, job))

    def run_all(self) -> JobReport:
        """Run every job; one that fails stops no other. Nobody is told but the caller.

        What a job raises is in the report; KeyboardInterrupt and SystemExit are not a job's own, and go out.

        Raises:
            QueueRunning: it runs already.
        """
        return self._run(call)

    def run_all_observed(self, runner: ObservedJobRunner) -> JobReport:
        """As `run_all`, with each run told to the runner's observer.

        Raises:
            JobTypeError: the observer has async hooks.
            QueueRunning: it runs already.
        """
        runner.refuse_async_hooks()
        return self._run(runner.run)

    def _run(self, run: Callable[[Job], object]) -> JobReport:
        with self._one_run() as jobs:
            return JobReport.of([(name, _attempt(run, job)) for name, job in jobs])


class AsyncJobQueue(_Held):
    """Runs jobs in the calling task, in the order in which they were pushed (nidus-jobs: AsyncJobQueue).

    Takes sync jobs too, which hold up the event loop while they run. All else is as in a JobQueue.
    """

    def push(self, job: AsyncJob | Job) -> None:
        """Put a job at the end.

        Raises:
            JobTypeError: it is no job.
            OptionError: its name is not 1 to 255 bytes of text.
        """
        self._jobs.append((name_of(job), job))

    async def run_all(self) -> JobReport:
        """Run every job, one at a time; one that fails stops no other. Nobody is told but the caller.

        What a job raises is in the report, a CancelledError of its own too. When the caller is cancelled, the job that
        runs is cancelled with it, the others do not begin, and there is no report.

        Raises:
            QueueRunning: it runs already.
        """
        return await self._run(call_async)

    async def run_all_observed(self, runner: ObservedJobRunner) -> JobReport:
        """As `run_all`, with each run told to the runner's observer.

        Raises:
            QueueRunning: it runs already.
        """
        return await self._run(runner.run_async)

    async def _run(self, run: Callable[[Job], Awaitable[object]]) -> JobReport:
        with self._one_run() as jobs:
            return JobReport.of([(name, await _attempt_async(run, job)) for name, job in jobs])


def _attempt(run: Callable[[Job], object], job: Job) -> JobError | None:
    try:
        run(job)
    except (Exception, asyncio.CancelledError) as error:  # no task is cancelled in the middle of a plain call
        return JobError.of(error)
    return None


async def _attempt_async(run: Callable[[Job], Awaitable[object]], job: Job) -> JobError | None:
    asked, failure = cancellations(), None
    try:
        await run(job)
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        failure = JobError.of(error)
    except Exception as error:
        failure = JobError.of(error)
    if cancellations() > asked:
        raise asyncio.CancelledError  # the job has kept it to itself
    return failure
