"""What a store remembers of a queue, so that most claims need no look at the jobs that wait for their time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs_async.core.job import DEFERRED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from jobs_async.core.job import Job

LOOK_EVERY = 0.5
"""Seconds after which a busy queue is looked at again for due jobs that another process may have stored."""


class Due:
    """When the next job of a queue is due, as far as is known, and when that was looked up."""

    __slots__ = ("at", "busy", "looked_at")

    def __init__(self) -> None:
        self.at: datetime | None = None
        self.looked_at = 0.0
        self.busy = False

    def is_old(self, uptime: float) -> bool:
        """Is it time to look again? A queue that is not busy has it, and so has one whose machine began anew."""
        return not self.busy or uptime >= self.looked_at + LOOK_EVERY or uptime < self.looked_at

    def is_due(self, now: datetime) -> bool:
        return self.at is not None and self.at <= now

    def seconds(self, now: datetime) -> float | None:
        return None if self.at is None else max(0.0, (self.at - now).total_seconds())


class Dues(dict[str, Due]):
    """What is known of each queue."""

    def __missing__(self, queue: str) -> Due:
        return self.setdefault(queue, Due())

    def mind(self, jobs: Iterable[Job[Any] | None]) -> None:
        """Remember the earliest time at which one of these is due."""
        for job in jobs:
            if job is not None and job.state in DEFERRED:
                due = self[job.queue]
                if due.at is None or job.scheduled_at < due.at:
                    due.at = job.scheduled_at
