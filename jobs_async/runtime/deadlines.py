"""Timeouts: one timer a queue, set to the earliest, for most runs end long before theirs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobs_async.runtime.run import Cause, Run

if TYPE_CHECKING:
    from collections.abc import Collection


class Deadlines:
    """Stops the runs that are out of time."""

    __slots__ = ("_at", "_runs", "_timer")

    def __init__(self, runs: Collection[Run]) -> None:
        self._runs = runs
        self._timer: asyncio.TimerHandle | None = None
        self._at = float("inf")

    def watch(self, run: Run) -> None:
        """Mind a run that has just started; it is forgotten when it is no longer among the runs."""
        if run.deadline_at < self._at:
            self._set(run.deadline_at)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = float("inf")

    def _set(self, at: float) -> None:
        self.close()
        self._at = at
        self._timer = asyncio.get_running_loop().call_at(at, self._strike)

    def _strike(self) -> None:
        now = asyncio.get_running_loop().time()
        self._at = float("inf")
        waiting: list[float] = []
        for run in list(self._runs):
            if run.deadline_at > now:
                waiting.append(run.deadline_at)
            elif run.cause is None and run.outcome is None:
                run.stop(Cause.TIMEOUT)
        if waiting and min(waiting) != float("inf"):
            self._set(min(waiting))
