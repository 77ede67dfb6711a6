"""Cron in real processes: one node after the other is killed at the very instant of a tick, on one SQLite file."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from typing import Any

from jobs_async import Event, JobEnqueued, SqliteStore, Supervisor, Telemetry
from jobs_async.clock import SystemClock
from jobs_async.core.cron import CronExpr
from jobs_async.runtime import scheduler
from tests.chaos.fleet import HEARTBEAT, LEASE, POLL_INTERVAL, RESCUE_INTERVAL, Fleet, Place, until_asked_to_stop
from tests.chaos.scenario import Report, main

NODES = 5
MIDNIGHT = datetime(2030, 1, 1, tzinfo=UTC)
SPEED = 60.0
"""A minute passes in a second."""
ENTRIES = {"red": "*/3 * * * *", "green": "1-59/3 * * * *", "blue": "2-59/3 * * * *"}
"""In each second one of them is due, and each has three to be stored before its next."""


class FastClock(SystemClock):
    """A wall clock in a hurry, alike in all processes. Leases follow the uptime, which is the real one."""

    def __init__(self, began: float, midnight: datetime = MIDNIGHT) -> None:
        super().__init__()
        self._began = began
        self._midnight = midnight

    def now(self) -> datetime:
        return self._midnight + timedelta(seconds=SPEED * (time.monotonic() - self._began))

    def sleep_until(self, instant: datetime) -> None:
        """In real time, to the millisecond or so."""
        seconds = (instant - self.now()).total_seconds() / SPEED
        time.sleep(max(0.0, seconds))


def clockwork(place: Place, *, kills: int = 200) -> Report:
    """Kill the node that fired last within 50 ms of a tick, again and again, and start another in its place."""
    clock, dice = FastClock(time.monotonic()), place.dice()
    wrong: list[str] = []
    with Fleet(place) as fleet:
        nodes = [fleet.start(live, clock) for _ in range(NODES)]
        fleet.until("all entries have fired", lambda: len(stored(place)) >= len(ENTRIES))
        first = next_minute(clock.now())
        for number in range(kills):
            tick = next_minute(clock.now() + timedelta(seconds=SPEED * 0.1))
            clock.sleep_until(tick + timedelta(seconds=SPEED * dice.uniform(-0.05, 0.05)))
            doomed = whoever_fired_last(place, nodes)
            fleet.kill(doomed)
            nodes[nodes.index(doomed)] = fleet.start(live, clock)
            wrong += place.check_now() if number % 10 == 0 else []
        last = next_minute(clock.now()) + timedelta(minutes=1)
        fleet.until("the last tick is long past", lambda: clock.now() > last + timedelta(minutes=4))
        fleet.stop()
    wrong_ticks, expected = compare(place, first, last)
    return {"kills": kills, "ticks": expected, "killed_unheard": unheard(place), "violations": wrong + wrong_ticks}


def next_minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0) + timedelta(minutes=1)


def stored(place: Place) -> Counter[tuple[str, datetime]]:
    """How many jobs the file holds of each tick of each entry."""
    metas = [json.loads(meta) for (meta,) in place.ask("SELECT meta FROM jobs_async_jobs WHERE meta IS NOT NULL")]
    return Counter((meta["cron"], datetime.fromisoformat(meta["cron_at"])) for meta in metas)


def compare(place: Place, first: datetime, last: datetime) -> tuple[list[str], int]:
    """What is wrong with the ticks of a time in which there always was a node, and how many there were."""
    found = stored(place)
    wrong = [f"{count} jobs of {name} at {at:%H:%M}" for (name, at), count in found.items() if count > 1]
    expected = {(name, at) for name, text in ENTRIES.items() for at in ticks_of(text, first, last)}
    wrong += [f"no job of {name} at {at:%H:%M}" for name, at in sorted(expected - found.keys())]
    wrong += [f"{name} fired at {at}" for name, at in found if not CronExpr.parse(ENTRIES[name]).matches(at)]
    spent = place.ask("SELECT count(*) FROM jobs_async_ticks WHERE job_id IS NOT NULL")
    if spent != [(found.total(),)]:
        wrong.append(f"{spent} ticks say of which job they are, for {found.total()} jobs")
    return wrong, len(expected)


def ticks_of(text: str, first: datetime, last: datetime) -> list[datetime]:
    expr = CronExpr.parse(text)
    minutes = [first + number * timedelta(minutes=1) for number in range((last - first) // timedelta(minutes=1))]
    return [minute for minute in minutes if expr.matches(minute)]


def whoever_fired_last(place: Place, nodes: list[BaseProcess]) -> BaseProcess:
    """As far as it lived to say so."""
    pids = [int(line.split()[4]) for line in (place.folder / "ledger").read_text().splitlines() if line[0] == "A"]
    return next((node for pid in reversed(pids) for node in nodes if node.pid == pid), nodes[0])


def unheard(place: Place) -> int:
    """Jobs whose node was killed between storing them and saying so."""
    told = [line for line in (place.folder / "ledger").read_text().splitlines() if line[0] == "A"]
    return stored(place).total() - len(told)


# --- inside the processes ---


async def live(place: Place, clock: FastClock) -> None:
    """A node that knows all entries, and looks at the clock as often as befits its speed."""
    scheduler.LOOK_EVERY = 0.01

    async def tell(event: Event) -> None:
        if isinstance(event, JobEnqueued):
            place.ledger.mark("A", event.job)

    async def work(args: Any, ctx: Any) -> None:
        place.ledger.mark("B", ctx.job)

    telemetry = Telemetry()
    telemetry.attach(tell)
    jobs = Supervisor(
        SqliteStore(place.jobs, clock=clock),
        telemetry=telemetry,
        clock=clock,
        poll_interval=POLL_INTERVAL,
        heartbeat=HEARTBEAT,
        lease=LEASE,
        rescue_interval=RESCUE_INTERVAL,
        rng=place.dice(),
    )
    jobs.register_worker("work", work)
    for name, text in ENTRIES.items():
        jobs.register_cron(name, text, "work")
    async with jobs:
        await until_asked_to_stop()


if __name__ == "__main__":
    main(clockwork)
