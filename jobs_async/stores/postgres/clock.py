"""The time of the server, which all nodes share, however their own clocks stand."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from jobs_async.clock import SystemClock
from jobs_async.stores.rows import EPOCH

if TYPE_CHECKING:
    from jobs_async.core.store import Clock
    from jobs_async.stores.postgres.session import Session


ASK_EVERY = 60.0


class ServerClock(SystemClock):
    """What the server's clock said when it was last asked, and how long that is ago.

    Right within half the time that the question took; asked when the store opens, with each sign of life, and where
    there are none, with what is stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: tuple[datetime, float] | None = None

    async def ask(self, session: Session) -> None:
        """Set it by the server's."""
        _, asked_at = self.uptime()
        ((told,),) = await session.run("server_time")
        _, answered_at = self.uptime()
        self._told = told, (asked_at + answered_at) / 2

    @property
    def is_old(self) -> bool:
        """Is it a minute or more since it was asked? Meanwhile the server's clock may have been set."""
        return self._told is None or not 0 <= self.uptime()[1] - self._told[1] < ASK_EVERY

    def now(self) -> datetime:
        if self._told is None:
            return super().now()
        told, at = self._told
        return told + timedelta(seconds=self.uptime()[1] - at)


class GivenLeases:
    """The time by which leases are judged where a clock is given, as in tests: no boot outlasts a century."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._boots: list[str] = []

    def now(self) -> datetime:
        boot, uptime = self._clock.uptime()
        if boot not in self._boots:
            self._boots.append(boot)
        return EPOCH + timedelta(days=36_525 * self._boots.index(boot), seconds=uptime)
