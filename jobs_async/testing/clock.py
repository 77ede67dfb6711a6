"""Clocks for tests: one that stands still until it is told to move, and one that runs and can be put forward."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from jobs_async.clock import SystemClock
from jobs_async.core import limits

if TYPE_CHECKING:
    from jobs_async.core.limits import Seconds

START = datetime(2025, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)


class FakeClock:
    """Time for tests: a `Clock` whose wall clock and uptime move together, or apart.

    Uptime is counted in whole microseconds, so that no sum of steps drifts off an expiry.
    """

    __slots__ = ("_boot", "_now", "_up")

    def __init__(self, start: datetime = START) -> None:
        self._now = limits.instant(start, "start")
        self._boot = 1
        self._up = timedelta(hours=1)

    def now(self) -> datetime:
        return self._now

    def uptime(self) -> tuple[str, float]:
        return f"boot-{self._boot}", self._up.total_seconds()

    def advance(self, step: Seconds) -> None:
        """Let time pass: on the wall and since boot."""
        passed = timedelta(seconds=limits.seconds(step, "step"))
        self._now += passed
        self._up += passed

    def jump(self, step: Seconds) -> None:
        """Set the wall clock forward, or back where `step` is negative; the uptime does not notice."""
        self._now += step if isinstance(step, timedelta) else timedelta(seconds=step)

    def reboot(self) -> None:
        """Start the machine anew: another identity, and seconds from zero."""
        self._boot += 1
        self._up = timedelta()


class TravelClock(SystemClock):
    """Real time, and what it was put forward by: for tests that let days pass between two lines."""

    __slots__ = ("_ahead", "_up")

    def __init__(self) -> None:
        super().__init__()
        self._ahead = self._up = timedelta()

    def now(self) -> datetime:
        return super().now() + self._ahead

    def uptime(self) -> tuple[str, float]:
        boot, seconds = super().uptime()
        return boot, seconds + self._up.total_seconds()

    def advance(self, step: Seconds) -> None:
        """Let time pass: on the wall and since boot."""
        passed = timedelta(seconds=limits.seconds(step, "step"))
        self._ahead += passed
        self._up += passed

    def jump(self, step: Seconds) -> None:
        """Set the wall clock forward, or back where `step` is negative; the uptime does not notice."""
        self._ahead += step if isinstance(step, timedelta) else timedelta(seconds=step)
