"""Timeouts, and handlers that take long: one timer a queue, for most runs end long before either."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobs_async.runtime.run import NEVER, Cause, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

APART = 0.5
"""Seconds between two looks for slow handlers alone: each is a walk through all runs."""


class Deadlines:
    """Stops the runs that are out of time, and once a run tells of those that have run for `slow_after` seconds."""

    __slots__ = ("_at", "_runs", "_slow", "_slow_after", "_timer")

    def __init__(
        self, runs: Collection[Run], slow_after: float | None = None, slow: Callable[[Run, float], None] | None = None
    ) -> None:
        self._runs = runs
        self._slow_after = NEVER if slow_after is None or slow is None else slow_after
        self._slow = slow
        self._timer: asyncio.TimerHandle | None = None
        self._at = NEVER

    def watch(self, run: Run) -> None:
        """Mind a run that has just started; it is forgotten when it is no longer among the runs."""
        if run.began_at + self._slow_after < self._at or run.deadline_at < self._at:
            self._set(min(run.deadline_at, self._slow_at(run)))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = NEVER

    def _slow_at(self, run: Run) -> float:
        return NEVER if run.is_slow else run.began_at + self._slow_after

    def _set(self, at: float) -> None:
        self.close()
        self._at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._strike)

    def _strike(self) -> None:
        now = asyncio.get_running_loop().time()
        self._at = over_at = slow_at = NEVER
        for run in list(self._runs):
            if run.cause is None and run.outcome is None and run.task is not None:
                self._look_at(run, now)
                if run.cause is None:
                    over_at, slow_at = min(over_at, run.deadline_at), min(slow_at, self._slow_at(run))
        waiting = min(over_at, max(slow_at, now + APART))
        if waiting != NEVER:
            self._set(waiting)

    def _look_at(self, run: Run, now: float) -> None:
        if run.deadline_at <= now:
            run.stop(Cause.TIMEOUT)
        elif not run.is_slow and self._slow is not None and run.began_at + self._slow_after <= now:
            run.is_slow = True
            self._slow(run, now - run.began_at)
