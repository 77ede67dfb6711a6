"""Handlers to attach: counts, log lines, an activity log; and an event in one line."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs_async.core.events import (
    Event,
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
    JobStuck,
    LeaseLost,
    LoopStalled,
    QueueEvent,
    StaleSettlement,
    StoreFailing,
    StoreRecovered,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class StatsHandler:
    """Counts, kept in memory; attach one and read it at any time (zzz_jobs: tracking job statistics)."""

    enqueued: int = 0
    completed: int = 0
    failed: int = 0
    discarded: int = 0
    total_duration_ms: int = 0

    def __call__(self, event: Event) -> None:
        match event:
            case JobEnqueued():
                self.enqueued += 1
            case JobCompleted():
                self.completed += 1
                self.total_duration_ms += event.duration_ms
            case JobFailed():
                self.failed += 1
            case JobDiscarded():
                self.discarded += 1
            case _:
                pass

    @property
    def mean_duration_ms(self) -> float:
        """Milliseconds a completed run took on average; 0 before the first."""
        return self.total_duration_ms / self.completed if self.completed else 0.0


class LoggingHandler:
    """One log line an event, without arguments or keys; failures as warnings, discards as errors."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log or logging.getLogger("jobs_async.events")

    def __call__(self, event: Event) -> None:
        level = _LEVELS.get(type(event), logging.INFO)
        if self._log.isEnabledFor(level):
            self._log.log(level, "%s", describe(event))


_LEVELS: dict[type[Event], int] = {
    JobDuplicate: logging.DEBUG,
    JobFailed: logging.WARNING,
    JobInterrupted: logging.WARNING,
    JobRescued: logging.WARNING,
    JobStuck: logging.WARNING,
    LoopStalled: logging.WARNING,
    JobDiscarded: logging.ERROR,
    LeaseLost: logging.ERROR,
    StoreFailing: logging.ERROR,
}


def describe(event: Event) -> str:
    """An event in one line, without arguments or keys: for logs and activity views."""
    what = event.type.partition("_")[2]
    if not isinstance(event, JobEvent | QueueEvent):
        what = event.type.replace("_", " ")
    match event:
        case JobEvent(job=job):
            return f"{what}: {job.worker} #{job.id} {_about_job(event)}"
        case QueueEvent(queue=queue):
            return f"{what}: queue {queue}"
        case LoopStalled():
            who = _first_line(event.blocker)
            return f"{what}: the event loop stood still for {event.seconds:.1f} s, held up by {who}"
        case StoreFailing():
            return f"{what}: the store does not work - {_first_line(event.error_msg)}"
        case StoreRecovered():
            return f"{what}: the store works again after {event.seconds:.1f} s"
        case LeaseLost():
            return f"{what}: node {event.node} goes on as {event.new_node}"
        case _:
            return what


def _about_job(event: JobEvent) -> str:
    job = event.job
    match event:
        case JobResult() if event.error_msg:
            return f"attempt {job.attempt}/{job.max_attempts} - {_first_line(event.error_msg)}"
        case JobResult():
            return f"in {event.duration_ms} ms"
        case JobStuck():
            return f"goes on after it was told to end ({event.cause})"
        case JobSlow():
            where = f", now at {event.stack[-1]}" if event.stack else ""
            return f"has run for {event.seconds:.1f} s so far{where}"
        case StaleSettlement():
            return f"({job.queue}) was stale, its outcome is dropped"
        case _:
            return f"({job.queue})"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else text


def _timed(event: Event) -> str:
    return f"{event.at:%H:%M:%S} {describe(event)}"


class ActivityLog:
    """The last `size` things that happened, one line each, for a screen or a page (zzz_jobs: activity log).

    `line` turns an event into a line of your own, or None to leave it out.
    """

    def __init__(self, size: int = 100, line: Callable[[Event], str | None] = _timed) -> None:
        self._lines: deque[str] = deque(maxlen=size)
        self._line = line

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line is not None:
            self._lines.append(line)

    def latest(self, count: int = 10) -> list[str]:
        """Up to `count` lines, newest first."""
        return list(self._lines)[: -count - 1 : -1] if count > 0 else []
