"""What events do to metrics: a dictionary look-up and an addition each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs_async.core.events import (
    Event,
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobDuplicate,
    JobEnqueued,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobRescued,
    JobResult,
    JobSlow,
    JobSnoozed,
    JobStarted,
    JobStuck,
    LeaseLost,
    LoopStalled,
    StaleSettlement,
    StoreFailing,
    StoreRecovered,
)
from jobs_async.observe.crons import CronFold

if TYPE_CHECKING:
    from jobs_async.core.job import Job
    from jobs_async.observe.families import Counter, Key
    from jobs_async.observe.metrics import Metrics

Fold = Callable[[Any], None]
"""What an event does; called with the lock of the metrics held."""

OUTCOMES: dict[type[JobEvent], str] = {
    JobCompleted: "completed",
    JobFailed: "failed",
    JobDiscarded: "discarded",
    JobCancelled: "cancelled",
    JobSnoozed: "snoozed",
    JobInterrupted: "interrupted",
    JobRescued: "rescued",
    StaleSettlement: "stale",
}
"""The label of what became of an attempt, or of a job that had none."""


class _Told(threading.local):
    """The event that a thread has told last."""

    event: Event | None = None


class _Worker:
    """The numbers of one worker's jobs in one queue. They are there, at 0, before anything can go wrong."""

    __slots__ = ("outcomes", "run", "slow", "stuck", "wait")

    def __init__(self, metrics: Metrics, who: Key) -> None:
        self.outcomes = {outcome: metrics.finished.cell((*who, outcome)) for outcome in OUTCOMES.values()}
        self.run = metrics.run.series(who)
        self.wait = metrics.wait.series(who)
        self.slow = metrics.slow.cell(who)
        self.stuck = metrics.stuck.cell(who)


class EventFold:
    """A telemetry handler that turns events into metrics; attached twice, it counts once. Takes some microseconds."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = metrics.lock
        self._crons = CronFold(metrics)
        self._told = _Told()
        self._workers: dict[Key, _Worker] = {}
        self._folds = {**self._of_runtime(), **(self._of_jobs() if metrics.per_job else {})}
        self._store_fails(False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __call__(self, event: Event) -> None:
        told = self._told
        if event is told.event:
            return
        told.event = event
        fold = self._folds.get(type(event))
        if fold is not None:
            with self._lock:
                fold(event)

    def call_with_all(self, events: Sequence[Event]) -> None:
        """As if it were called with each of these, one after the other."""
        told, folds = self._told, self._folds
        if events[-1] is told.event:
            return
        told.event = events[-1]
        with self._lock:
            for event in events:
                fold = folds.get(type(event))
                if fold is not None:
                    fold(event)

    def _of_runtime(self) -> dict[type[Event], Fold]:
        return {
            LoopStalled: self._stalled,
            LeaseLost: self._lost,
            StoreFailing: lambda _: self._store_fails(True),
            StoreRecovered: lambda _: self._store_fails(False),
            JobEnqueued: lambda event: self._crons.enqueued(event.job),
            JobCompleted: lambda event: self._crons.completed(event.job),
        }

    def _of_jobs(self) -> dict[type[Event], Fold]:
        return {
            **{kind: partial(self._ended, outcome) for kind, outcome in OUTCOMES.items()},
            JobCompleted: self._completed,
            JobFailed: partial(self._ran, OUTCOMES[JobFailed]),
            JobDiscarded: partial(self._may_have_run, OUTCOMES[JobDiscarded]),
            JobCancelled: partial(self._may_have_run, OUTCOMES[JobCancelled]),
            JobStarted: self._started,
            JobEnqueued: self._enqueued,
            JobDuplicate: partial(_count, self._metrics.duplicates),
            JobSlow: partial(_count, self._metrics.slow),
            JobStuck: partial(_count, self._metrics.stuck),
        }

    def _worker(self, job: Job[Any]) -> _Worker:
        """Remembered but for those beyond `max_series`, for there may be any number of them."""
        who = (job.queue, job.worker)
        worker = self._workers.get(who)
        if worker is None:
            worker = _Worker(self._metrics, who)
            most = self._metrics.max_series
            if most is None or len(self._workers) < most:
                self._workers[who] = worker
        return worker

    def _started(self, event: JobStarted) -> None:
        """The first attempt says how long a job had to wait: from when it was due, and stored."""
        job = event.job
        worker = self._worker(job)
        if job.attempt == 1 and job.attempted_at is not None:
            due, stored = job.scheduled_at, job.inserted_at
            waited = (job.attempted_at - (due if due > stored else stored)).total_seconds()
            worker.wait.observe(waited if waited > 0.0 else 0.0)

    def _enqueued(self, event: JobEnqueued) -> None:
        _count(self._metrics.enqueued, event)
        if event.job.meta_json is not None:
            self._crons.enqueued(event.job)

    def _completed(self, event: JobCompleted) -> None:
        self._ran("completed", event)
        if event.job.meta_json is not None:
            self._crons.completed(event.job)

    def _ended(self, outcome: str, event: JobEvent) -> None:
        self._worker(event.job).outcomes[outcome].value += 1.0

    def _ran(self, outcome: str, event: JobResult) -> None:
        worker = self._worker(event.job)
        worker.outcomes[outcome].value += 1.0
        worker.run.observe(event.duration_ms / 1000)

    def _may_have_run(self, outcome: str, event: JobResult) -> None:
        """A job may be cancelled or discarded without having run; then there is no duration."""
        if event.duration_ms:
            self._ran(outcome, event)
        else:
            self._ended(outcome, event)

    def _stalled(self, event: LoopStalled) -> None:
        self._metrics.stalls.series().observe(event.seconds)

    def _lost(self, _event: LeaseLost) -> None:
        self._metrics.leases_lost.cell().value += 1.0

    def _store_fails(self, fails: bool) -> None:
        self._metrics.store_failing.put(self, {(): float(fails)})


def _count(counter: Counter, event: JobEvent) -> None:
    job = event.job
    counter.cell((job.queue, job.worker)).value += 1.0
