"""What came of running a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobs_async.inprocess.errors import JobError


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that failed, by its name, and why."""

    job: str
    error: JobError


@dataclass(frozen=True, slots=True)
class JobReport:
    """The names of the jobs that completed and the failures of the others, each in the order in which they ran.

    Ask `is_success`: like any plain object, a report is true in an `if`, whatever it says.
    """

    completed: tuple[str, ...] = ()
    failed: tuple[JobFailure, ...] = ()

    @property
    def is_success(self) -> bool:
        """Whether no job failed; so it is for an empty queue."""
        return not self.failed

    @classmethod
    def of(cls, outcomes: Iterable[tuple[str, JobError | None]]) -> JobReport:
        """From the name of each job and why it failed; None where it did not."""
        completed: list[str] = []
        failed: list[JobFailure] = []
        for name, error in outcomes:
            if error is None:
                completed.append(name)
            else:
                failed.append(JobFailure(name, error))
        return cls(tuple(completed), tuple(failed))
