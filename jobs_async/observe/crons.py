"""When the entries of cron ticked and succeeded last, as their jobs tell: those say in their `meta` of which tick."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs_async.core.job import Job
    from jobs_async.observe.families import Gauge, Key
    from jobs_async.observe.metrics import Metrics


class CronFold:
    """The latest tick and the latest success of each entry, in this process. Called by one thread at a time."""

    def __init__(self, metrics: Metrics) -> None:
        self._tick, self._success = metrics.cron_tick, metrics.cron_success
        self._ticks: dict[Key, float] = {}
        self._successes: dict[Key, float] = {}

    def enqueued(self, job: Job[Any]) -> None:
        """From its first tick on an entry is there in both; the success is 0 until there is one."""
        found = tick_of(job)
        if found is not None:
            entry, at = found
            self._put(self._tick, self._ticks, (entry,), at)
            self._put(self._success, self._successes, (entry,), 0.0)

    def completed(self, job: Job[Any]) -> None:
        found = tick_of(job)
        if found is not None and job.completed_at is not None:
            self._put(self._success, self._successes, (found[0],), job.completed_at.timestamp())

    def _put(self, gauge: Gauge, times: dict[Key, float], key: Key, at: float) -> None:
        times[key] = max(at, times.get(key, at))
        gauge.put(self, times)


def tick_of(job: Job[Any]) -> tuple[str, float] | None:
    """The entry and the instant of its tick, in seconds since 1970; None where it is no job of an entry."""
    if job.meta_json is None or '"cron_at"' not in job.meta_json:
        return None
    meta = job.meta
    entry, at = meta.get("cron"), meta.get("cron_at")
    if not isinstance(entry, str) or not isinstance(at, str):
        return None
    try:
        return entry, datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError):
        return None
