"""What telemetry handlers receive: frozen values, one class per event, usable in `match`.

`.type` bears the source's name (zzz_jobs: telemetry); `.at` is when the event was made, on the runner's clock.
A job in an event is the record after the transition.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec import Struct

from jobs_async.core.job import Job, JobState

if TYPE_CHECKING:
    from jobs_async.core.lifecycle import Transition


class Event(Struct, frozen=True, kw_only=True):
    """The base of every event."""

    type: ClassVar[str] = "event"
    at: datetime


class JobEvent(Event, frozen=True):
    """An event about one job."""

    job: Job[Any]


class JobEnqueued(JobEvent, frozen=True):
    """A job was inserted. With `connection=` it is emitted at the call, `in_transaction`, and may be rolled back."""

    type: ClassVar[str] = "job_enqueued"
    in_transaction: bool = False


class JobDuplicate(JobEvent, frozen=True):
    """An enqueue met a live job of its unique key, or a job of its idempotency key; `job` is that one."""

    type: ClassVar[str] = "job_duplicate"


class JobStarted(JobEvent, frozen=True):
    """A job was claimed and its handler is about to be called."""

    type: ClassVar[str] = "job_started"


class JobResult(JobEvent, frozen=True):
    """A run ended and the store knows. `duration_ms` is the handler's wall-clock time; `error_msg` None on success."""

    duration_ms: int = 0
    error_msg: str | None = None


class JobCompleted(JobResult, frozen=True):
    """The handler returned."""

    type: ClassVar[str] = "job_completed"


class JobFailed(JobResult, frozen=True):
    """The handler failed and will be tried again."""

    type: ClassVar[str] = "job_failed"


class JobDiscarded(JobResult, frozen=True):
    """The job will not be tried again: attempts spent, Discard raised, no handler, or lost too often."""

    type: ClassVar[str] = "job_discarded"


class JobCancelled(JobResult, frozen=True):
    """The job was cancelled: by a user, by its handler, or replaced by a job of its unique key."""

    type: ClassVar[str] = "job_cancelled"


class JobSnoozed(JobEvent, frozen=True):
    """The handler asked to be run again in `seconds`; the attempt does not count."""

    type: ClassVar[str] = "job_snoozed"
    seconds: float


class JobInterrupted(JobEvent, frozen=True):
    """A stop, or a worker unknown here, handed the job back; the attempt does not count."""

    type: ClassVar[str] = "job_interrupted"


class JobRescued(JobEvent, frozen=True):
    """The job's node died and the job waits again."""

    type: ClassVar[str] = "job_rescued"


class StaleSettlement(JobEvent, frozen=True):
    """A run ended whose claim no longer held: its outcome was dropped. `job` is the record it had started with."""

    type: ClassVar[str] = "stale_settlement"


class JobStuck(JobEvent, frozen=True):
    """A handler goes on 3 seconds after it was told to end: a thread, or one that swallows its cancellation.

    It keeps its slot until it ends. `cause` is why it was told: "timeout", "stop" and the like; `stack` is where it is,
    as in JobSlow.
    """

    type: ClassVar[str] = "job_stuck"
    cause: str
    stack: tuple[str, ...] = ()


class JobSlow(JobEvent, frozen=True):
    """A handler has run for longer than `slow_after`; told once a run, and nothing is done about it.

    `seconds` is how long it has run so far, `stack` where it is right now: its last calls, innermost last, each as
    "file:line:function"; () where it runs in a process.
    """

    type: ClassVar[str] = "job_slow"
    seconds: float
    stack: tuple[str, ...] = ()


class QueueEvent(Event, frozen=True):
    """An event about one queue."""

    queue: str


class QueuePaused(QueueEvent, frozen=True):
    """A queue was paused: no claim that begins from now on returns a job."""

    type: ClassVar[str] = "queue_paused"


class QueueResumed(QueueEvent, frozen=True):
    """A paused queue was resumed."""

    type: ClassVar[str] = "queue_resumed"


class LeaseLost(Event, frozen=True):
    """This node was taken for dead: its handlers are cancelled, others have its jobs, and it goes on as `new_node`."""

    type: ClassVar[str] = "lease_lost"
    node: str
    new_node: str


class LoopStalled(Event, frozen=True):
    """The event loop did not turn for more than a second: something blocks it that should await or run in a thread.

    `blocker` names the job, the telemetry handler or the task that held it up, `stack` are its last calls. `seconds`
    is how long it took; where the handler is told from the watchdog's thread (`any_thread`), how long so far.
    """

    type: ClassVar[str] = "loop_stalled"
    seconds: float
    blocker: str
    stack: tuple[str, ...] = ()


class StoreFailing(Event, frozen=True):
    """The store has refused what it was asked for more than a second; what runs goes on, and it is asked again."""

    type: ClassVar[str] = "store_failing"
    error_msg: str


class StoreRecovered(Event, frozen=True):
    """A failing store works again, `seconds` after its first failure."""

    type: ClassVar[str] = "store_recovered"
    seconds: float


def outcome_event(step: Transition, job: Job[Any], at: datetime, duration_ms: int = 0) -> Event:
    """The event that tells of an applied transition out of a run."""
    error = job.last_error.error if job.last_error else None
    if step.rescue_delta and job.state is not JobState.discarded:
        return JobRescued(job=job, at=at)
    match job.state:
        case JobState.completed:
            return JobCompleted(job=job, at=at, duration_ms=duration_ms)
        case JobState.retryable:
            return JobFailed(job=job, at=at, duration_ms=duration_ms, error_msg=error)
        case JobState.discarded:
            return JobDiscarded(job=job, at=at, duration_ms=duration_ms, error_msg=error)
        case JobState.cancelled:
            return JobCancelled(job=job, at=at, duration_ms=duration_ms, error_msg=error)
        case JobState.scheduled if step.snoozed:
            return JobSnoozed(job=job, at=at, seconds=step.delay)
        case _:
            return JobInterrupted(job=job, at=at)
