"""The life of a job: which transitions exist, and which of them an outcome chooses.

Everything about states is decided here. A store applies what comes out, under its fence, and decides nothing;
`born` and `advance` compute the records, so that every store stamps and counts alike.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from jobs_async.core.errors import IllegalTransition
from jobs_async.core.job import FINAL, MAX_ERRORS, WAITING, ErrorRecord, Job, JobState, Progress
from jobs_async.core.outcome import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    Failure,
    Interrupted,
    Lost,
    Outcome,
    Snoozed,
)

if TYPE_CHECKING:
    from jobs_async.core.options import NewJob

_S = JobState

LEGAL: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (_S.scheduled, _S.available),  # due
        (_S.retryable, _S.available),
        (_S.available, _S.executing),  # claimed
        (_S.executing, _S.completed),
        (_S.executing, _S.retryable),  # failed, or lost again
        (_S.executing, _S.discarded),
        (_S.executing, _S.cancelled),
        (_S.executing, _S.scheduled),  # snoozed
        (_S.executing, _S.available),  # interrupted, or lost once
        (_S.available, _S.scheduled),  # put off by a user
        (_S.retryable, _S.scheduled),
        (_S.available, _S.cancelled),  # by a user, or replaced by a job of its unique key
        (_S.scheduled, _S.cancelled),
        (_S.retryable, _S.cancelled),
        (_S.available, _S.discarded),  # by a tool
        (_S.scheduled, _S.discarded),
        (_S.retryable, _S.discarded),
        (_S.completed, _S.available),  # run again by a user
        (_S.discarded, _S.available),
        (_S.cancelled, _S.available),
    }
)
"""Every move there is. A patch (source and target alike) changes fields of a live job, and is not a move."""


class Patch(Struct, frozen=True, kw_only=True):
    """Fields to set beside, or instead of, a move; what is UNSET stays."""

    progress: Progress | UnsetType = UNSET
    cancel_requested: bool | UnsetType = UNSET
    args_json: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    max_attempts: int | UnsetType = UNSET
    scheduled_at: datetime | UnsetType = UNSET


NO_PATCH = Patch()
_EDITED = ("queue", "max_attempts", "scheduled_at")
"""What can change only while a job waits."""
_PATCHED = Patch.__struct_fields__


class Transition(Struct, frozen=True, gc=False):
    """One decided step of `job`, to be applied only while the stored row is still what the decision was based on.

    That is the fence: id, state, claim and cancel_requested of the row equal those of `job`. `delay` is in seconds
    from the instant the store applies it.
    """

    job: Job[Any]
    target: JobState
    delay: float = 0.0
    attempt_delta: int = 0
    rescue_delta: int = 0
    error: Failure | None = None
    result: str | None = None
    snoozed: bool = False
    patch: Patch = NO_PATCH

    def __post_init__(self) -> None:
        patch = self.patch
        if self.job.state not in WAITING and any(getattr(patch, field) is not UNSET for field in _EDITED):
            raise IllegalTransition(f"job {self.job.id} is {self.job.state.name} and can no longer be edited")
        if self.target is self.job.state:
            if self.target in FINAL:
                raise IllegalTransition(f"job {self.job.id} is {self.target.name} and can no longer be changed")
        elif (self.job.state, self.target) not in LEGAL:
            raise IllegalTransition(f"job {self.job.id} cannot go from {self.job.state.name} to {self.target.name}")

    @property
    def is_patch(self) -> bool:
        return self.target is self.job.state


def decide(job: Job[Any], outcome: Outcome, retry_delay: float = 0.0) -> Transition:
    """Turn how a run ended into the one transition that follows. Pure and total.

    `retry_delay` is what the worker's strategy asked for, used only where the job will be tried again. A requested
    cancellation wins over everything but a kept result (zzz_jobs: job states; X1, X38).
    """
    if job.cancel_requested:
        kept = outcome.result if isinstance(outcome, (Completed, Cancelled)) else None
        return _cancelled(job, "cancelled on request", kept)
    match outcome:
        case Completed(result):
            return Transition(job, _S.completed, result=result)
        case Cancelled(reason, result):
            return _cancelled(job, reason, result)
        case Failed(failure):
            if job.attempt >= job.max_attempts:
                return Transition(job, _S.discarded, error=failure)
            return Transition(job, _S.retryable, delay=retry_delay, error=failure)
        case Discarded(failure):
            return Transition(job, _S.discarded, error=failure)
        case Snoozed(seconds):
            return Transition(job, _S.scheduled, delay=seconds, attempt_delta=-1, snoozed=True)
        case Interrupted(delay):
            target = _S.scheduled if delay > 0 else _S.available
            return Transition(job, target, delay=delay, attempt_delta=-1)
        case Lost():
            return _lost(job, outcome, retry_delay)


def _cancelled(job: Job[Any], reason: str, result: str | None) -> Transition:
    return Transition(job, _S.cancelled, error=Failure("Cancelled", reason), result=result)


def _lost(job: Job[Any], lost: Lost, retry_delay: float) -> Transition:
    error = Failure("Lost", lost.text)
    if job.attempt >= job.max_attempts or job.rescues >= lost.max_rescues:
        return Transition(job, _S.discarded, error=error, rescue_delta=1)
    if job.rescues == 0:
        return Transition(job, _S.available, error=error, rescue_delta=1)
    return Transition(job, _S.retryable, delay=retry_delay, error=error, rescue_delta=1)


def cancel(job: Job[Any], reason: str = "cancelled on request") -> Transition:
    """A user's wish: a waiting job ends at once, a running one is asked to.

    Raises:
        IllegalTransition: it has ended already.
    """
    if job.state is _S.executing:
        return Transition(job, _S.executing, patch=Patch(cancel_requested=True))
    return Transition(job, _S.cancelled, error=Failure("Cancelled", reason))


def edit(job: Job[Any], changes: Patch, delay: float | None = None) -> Transition:
    """A user's wish: change a job that waits; where `delay` or the patch says so, it waits anew for its time.

    Raises:
        IllegalTransition: it is executing, or has ended.
    """
    if job.state not in WAITING:
        raise IllegalTransition(f"job {job.id} is {job.state.name} and can no longer be edited")
    if changes.scheduled_at is not UNSET:
        return Transition(job, _S.scheduled, patch=changes)
    if delay is None:
        return Transition(job, job.state, patch=changes)
    return Transition(job, _S.scheduled if delay > 0 else _S.available, delay=delay, patch=changes)


def rerun(job: Job[Any]) -> Transition:
    """A user's wish: make an ended job, or one that waits for its time, available now, with a full set of attempts.

    Raises:
        IllegalTransition: it is available or running already.
    """
    if job.state in (_S.available, _S.executing):
        raise IllegalTransition(f"job {job.id} is {job.state.name} already")
    restart = -job.attempt if job.state in FINAL else 0
    return Transition(job, _S.available, attempt_delta=restart, patch=Patch(cancel_requested=False))


def born(new: NewJob, job_id: int, now: datetime) -> Job[Any]:
    """The first record of a job: scheduled only where its time is strictly in the future (zzz_jobs: Z6)."""
    at = now + timedelta(seconds=new.delay) if new.delay else (new.scheduled_at or now)
    return Job(
        id=job_id,
        state=_S.scheduled if at > now else _S.available,
        queue=new.queue,
        worker=new.worker,
        args_json=new.args_json,
        priority=new.priority,
        attempt=0,
        max_attempts=new.max_attempts,
        scheduled_at=at,
        inserted_at=now,
        timeout_seconds=new.timeout_seconds,
        unique_key=new.unique_key,
        idempotency_key=new.idempotency_key,
        correlation_id=new.correlation_id,
        external_id=new.external_id,
        tags=new.tags,
        meta_json=msgspec.json.encode(new.meta).decode() if new.meta else None,
    )


def claimed(job: Job[Any], node: str | None, now: datetime) -> Job[Any]:
    """The record of a job that a runner has just taken."""
    return replace(
        job,
        state=_S.executing,
        attempt=job.attempt + 1,
        claim=job.claim + 1,
        attempted_at=now,
        node=node,
        progress=None,
    )


def fits(row: Job[Any], base: Job[Any]) -> bool:
    """The fence: is the stored row still what was decided upon?"""
    return (
        row.id == base.id
        and row.state is base.state
        and row.claim == base.claim
        and row.cancel_requested == base.cancel_requested
    )


def advance(row: Job[Any], step: Transition, now: datetime) -> Job[Any]:
    """The record after a transition that the fence let through, stamped with the store's clock.

    What does not start in `executing` raises `claim`: so a pair of state and claim never comes back. A fence that
    holds means that nothing has happened in between, but a patch where the job is executing.
    """
    changes: dict[str, Any] = (
        {} if row.replaces is None and not row.duplicate else {"replaces": None, "duplicate": False}
    )
    if row.state is not _S.executing:
        changes["claim"] = row.claim + 1
    final = step.target in FINAL
    if not final and (step.delay or not step.is_patch):
        changes["scheduled_at"] = now + timedelta(seconds=step.delay) if step.delay else now
    if step.patch is not NO_PATCH:
        changes |= {field: value for field in _PATCHED if (value := getattr(step.patch, field)) is not UNSET}
    if step.is_patch:
        return replace(row, **changes)
    changes["state"] = step.target
    changes["completed_at"] = now if final else None
    if step.attempt_delta:
        changes["attempt"] = max(0, row.attempt + step.attempt_delta)
    if step.rescue_delta:
        changes["rescues"] = row.rescues + step.rescue_delta
    if step.result is not None:
        changes["result"] = msgspec.json.decode(step.result)
    if step.error is not None:
        changes["errors"] = with_error(row, step.error, now)
    return replace(row, **changes)


def with_error(row: Job[Any], failure: Failure, now: datetime) -> tuple[ErrorRecord, ...]:
    """The row's errors and one more, the oldest forgotten beyond twenty."""
    record = ErrorRecord(
        attempt=row.attempt, type=failure.type, error=failure.error, frames=failure.frames, at=now, node=row.node
    )
    return (*row.errors, record)[-MAX_ERRORS:]


def replaced(job: Job[Any], now: datetime) -> Job[Any]:
    """The record of a live job whose unique key a new one takes over; its claim grows, so no runner can settle it."""
    error = with_error(job, Failure("Cancelled", "replaced by a newer job of its unique key"), now)
    return replace(job, state=_S.cancelled, claim=job.claim + 1, completed_at=now, errors=error)
