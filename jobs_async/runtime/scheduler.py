"""Cron: every node watches the clock, and whoever is first spends the tick; no node leads.

A tick is spent in the same write that stores its job, so the fleet enqueues it once, whichever node dies at whichever
moment (zzz_jobs: cron-scheduling, where each process enqueued a copy of its own).
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from jobs_async.core.errors import ArgsError, OptionError, UniqueConflict, WorkerNotFound
from jobs_async.core.schedule import LATEST, ON_TIME
from jobs_async.core.store import Tick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobs_async.core.schedule import CronEntry
    from jobs_async.core.store import Clock
    from jobs_async.runtime.host import Host

LOOK_EVERY = 30.0
"""Seconds after which the clock is read again at the latest: it may have been set, or the machine have slept."""
TRY_EVERY = 5.0
"""Seconds between two looks, at most, while an entry cannot be enqueued: its neighbours are late by no more."""
A_MOMENT = 0.001

logger = logging.getLogger("jobs_async")


class _Plan:
    """How far the ticks of an entry are dealt with, and which comes next."""

    __slots__ = ("entry", "is_known", "next_at", "since")

    def __init__(self, entry: CronEntry, now: datetime) -> None:
        self.entry = entry
        self.is_known = False
        self.move_to(now)

    def move_to(self, now: datetime) -> None:
        """Everything up to now is dealt with."""
        self.since, self.next_at = now, self.entry.next_after(now)


class Scheduler:
    """Fires the ticks of entries that may come and go while it runs."""

    def __init__(self, host: Host, entries: Mapping[str, CronEntry], clock: Clock) -> None:
        self._host = host
        self._clock = clock
        self._entries = entries
        self._plans: dict[str, _Plan] = {}
        self._left: dict[str, datetime] = {}
        self.notice()

    def notice(self) -> None:
        """Entries have come or gone: from this very moment on the ticks of new ones count."""
        now, before = self._clock.now(), self._plans
        for name, plan in before.items():
            if self._entries.get(name) is not plan.entry:
                self._left[plan.entry.series] = now
        self._plans = {
            name: before[name] if name in before and before[name].entry is entry else _Plan(entry, now)
            for name, entry in self._entries.items()
        }

    async def look(self) -> float:
        """Fire what is due; seconds until the next look.

        Raises:
            The first error of a store, after every entry had its turn; what failed is tried again at the next look.
        """
        failed: Exception | None = None
        for plan in list(self._plans.values()):
            try:
                await self._see_to(plan, self._clock.now())
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        now = self._clock.now()
        waits = [(plan.next_at - now).total_seconds() + A_MOMENT for plan in self._plans.values()]
        return max(0.0, min([*waits, LOOK_EVERY]))

    async def _see_to(self, plan: _Plan, now: datetime) -> None:
        if self._plans.get(plan.entry.name) is not plan:
            return  # gone while others had their turn
        if not plan.is_known:
            await self._welcome(plan.entry, plan.since, now)
            plan.is_known = True
        if plan.next_at <= now:
            await self._catch_up(plan.entry, plan.since, now)
            plan.move_to(now)
        elif now < plan.since:  # the clock was set back since the last look; what was spent stays spent
            plan.move_to(now - timedelta(seconds=LOOK_EVERY))

    async def _catch_up(self, entry: CronEntry, since: datetime, now: datetime) -> None:
        """Ticks have come since the last look: the latest counts, if it is not too old."""
        due = entry.latest(since, now, LATEST if entry.catch_up == "latest" else ON_TIME)
        if due is None:
            logger.warning("nobody here looked at cron entry %s when it was due; its ticks are skipped", entry.name)
        else:
            await self._fire(entry, Tick(entry.name, due))

    async def _welcome(self, entry: CronEntry, since: datetime, now: datetime) -> None:
        """New here: fire the tick for which nobody was there, and write down that the entry is known now."""
        until = self._left.get(entry.series, since)  # while it was taken away here, nothing was missed
        missed = entry.latest(since - LATEST, until, LATEST - (now - until))
        if missed is not None and entry.catch_up == "latest":
            await self._fire(entry, Tick(entry.name, missed, late=entry.series))
        await self._host.insert_tick(None, Tick(entry.series, since))

    async def _fire(self, entry: CronEntry, tick: Tick) -> None:
        try:
            await self._host.insert_tick(entry, tick)
        except UniqueConflict:
            logger.info("cron entry %s is skipped: a live job holds its unique key", entry.name)
            await self._host.insert_tick(None, tick)
        except (ArgsError, OptionError, WorkerNotFound):
            logger.exception("cron entry %s cannot be enqueued", entry.name)
