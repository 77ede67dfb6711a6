"""What a cron entry is, and which of its ticks are still to be fired: pure, given the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from jobs_async.core import limits
from jobs_async.core.cron import CronExpr
from jobs_async.core.errors import CronError, OptionError
from jobs_async.core.options import Draft

if TYPE_CHECKING:
    from jobs_async.core.options import NewJob

CatchUp = Literal["latest", "none"]
LATEST = timedelta(minutes=10)
"""How late a missed tick is still caught up with."""
ON_TIME = timedelta(minutes=1)
"""How late a tick may be noticed by a node that was there."""

_OF_ONE_JOB = ("scheduled_at", "idempotency_key")


class CronEntry(Struct, frozen=True):
    """A job that is enqueued again and again: its name in the whole fleet, when, what, and what of missed ticks.

    Raises:
        CronError: `catch_up` is not "latest" or "none".
        OptionError: the name is none, or the draft has an option that belongs to a single job.
    """

    name: str
    expression: CronExpr
    draft: Draft[Any]
    catch_up: CatchUp = "latest"

    def __post_init__(self) -> None:
        limits.name(self.name, "the name of a cron entry")
        if self.catch_up not in ("latest", "none"):
            raise CronError('catch_up must be "latest" or "none"')
        for option in _OF_ONE_JOB:
            if option in self.draft.opts.given:
                raise OptionError(f"{option} belongs to a single job; the jobs of a cron entry are many")

    @property
    def series(self) -> str:
        """Names the entry together with its schedule, so that a schedule just edited has missed nothing."""
        expr = self.expression
        return "\n".join((self.name, expr.text, str(expr.timezone), str(expr.day_or)))

    def next_after(self, at: datetime) -> datetime:
        """The first tick after the minute of an instant, in UTC.

        Raises:
            ValueError: a naive datetime.
            CronError: Python's calendar (year 9999) ends before.
        """
        return self.expression.next_after(at)

    def latest(self, since: datetime, now: datetime, late: timedelta) -> datetime | None:
        """The last tick after the minute of `since` that has come, where it is no older than `late`."""
        found = None
        tick = self.next_after(max(since, now - late - timedelta(minutes=1)))
        while tick <= now:
            found, tick = tick, self.next_after(tick)
        return found if found is not None and found >= now - late else None

    def at_tick(self, new: NewJob, tick: datetime) -> NewJob:
        """The job of one tick: it says of which, in its `meta` and as the time it was due."""
        meta = {**new.meta, "cron": self.name, "cron_at": tick.astimezone(UTC).isoformat()}
        return replace(new, meta=meta, scheduled_at=None if new.delay else tick)
