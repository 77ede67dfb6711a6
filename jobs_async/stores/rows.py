"""Rows and jobs: the one place that knows in which column what is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from jobs_async.core.job import ErrorRecord, Job, JobState, Progress
from jobs_async.core.lifecycle import NO_PATCH, Transition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STATES = {int(state): state for state in JobState}

_loads = msgspec.json.decode
_errors = msgspec.json.Decoder(tuple[ErrorRecord, ...])
_progress = msgspec.json.Decoder(Progress)


def micros(at: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (at - EPOCH) // _MICROSECOND


@lru_cache(1024)
def instant(value: int) -> datetime:
    """The inverse of `micros`. Jobs of a batch share their instants."""
    return EPOCH + timedelta(microseconds=value)


def dumps(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Rows:
    """How one database keeps jobs: alike in all but what an instant is there."""

    __slots__ = ("instant", "stamp")

    def __init__(self, stamp: Callable[[datetime], Any], instant: Callable[[Any], datetime]) -> None:
        self.stamp = stamp
        self.instant = instant

    def to_row(self, job: Job[Any]) -> tuple[object, ...]:
        """A fresh job as its columns in the order of the table, all but its id."""
        return (
            int(job.state),
            job.queue,
            job.worker,
            job.args_json,
            job.priority,
            job.attempt,
            job.max_attempts,
            self.stamp(job.scheduled_at),
            self.stamp(job.inserted_at),
            None,
            None,
            job.rescues,
            job.claim,
            None,
            job.timeout_seconds,
            False,
            None,
            None,
            None,
            job.unique_key,
            job.idempotency_key,
            job.correlation_id,
            dumps(job.tags) if job.tags else None,
            job.meta_json,
            job.external_id,
        )

    def to_job(self, row: Sequence[Any]) -> Job[Any]:
        """A table row as the job it keeps."""
        return Job(
            id=row[0],
            state=_STATES[row[1]],
            queue=row[2],
            worker=row[3],
            args_json=row[4],
            priority=row[5],
            attempt=row[6],
            max_attempts=row[7],
            scheduled_at=self.instant(row[8]),
            inserted_at=self.instant(row[9]),
            attempted_at=None if row[10] is None else self.instant(row[10]),
            completed_at=None if row[11] is None else self.instant(row[11]),
            rescues=row[12],
            claim=row[13],
            node=row[14],
            timeout_seconds=row[15],
            cancel_requested=bool(row[16]),
            progress=to_progress(row[17]),
            result=None if row[18] is None else _loads(row[18]),
            errors=() if row[19] is None else _errors.decode(row[19]),
            unique_key=row[20],
            idempotency_key=row[21],
            correlation_id=row[22],
            tags=() if row[23] is None else tuple(_loads(row[23])),
            meta_json=row[24],
            external_id=row[25],
        )

    def to_change(self, base: Job[Any], after: Job[Any], step: Transition | None = None) -> tuple[object, ...]:
        """What compares and sets a row: the fence of `base`, the columns of `after`, the patch of `step` or nulls.

        The fence makes every column of the row but those a patch may touch equal to `base`, so all others can be given.
        """
        patch = NO_PATCH if step is None else step.patch
        return (
            base.id,
            int(base.state),
            base.claim,
            base.cancel_requested,
            int(after.state),
            after.attempt,
            after.rescues,
            after.claim,
            self.stamp(after.scheduled_at),
            None if after.completed_at is None else self.stamp(after.completed_at),
            _result(after, step),
            dumps(after.errors) if after.errors else None,
            after.cancel_requested,
            dumps(patch.progress) if isinstance(patch.progress, Progress) else None,
            patch.args_json if isinstance(patch.args_json, str) else None,
            patch.priority if isinstance(patch.priority, int) else None,
            after.queue,
            after.max_attempts,
        )

    def to_end(self, step: Transition, after: Job[Any]) -> tuple[object, ...]:
        """What compares and sets the row of a run that has just come to its end: fewer columns."""
        base = step.job
        return (
            base.id,
            base.claim,
            base.cancel_requested,
            int(after.state),
            None if after.completed_at is None else self.stamp(after.completed_at),
            _result(after, step),
            dumps(after.errors) if after.errors else None,
        )


def to_progress(text: str | None) -> Progress | None:
    return None if text is None else _progress.decode(text)


def _result(after: Job[Any], step: Transition | None) -> str | None:
    if step is not None and step.result is not None:
        return step.result
    return None if after.result is None else dumps(after.result)
