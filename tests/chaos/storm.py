"""A fleet on PostgreSQL that meets every fault at random, for as long as one likes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any

from jobs_async import (
    ConstantBackoff,
    IllegalTransition,
    JobNotFound,
    JobOpts,
    JobQuery,
    JobState,
    Snooze,
    StoreError,
)
from jobs_async.runtime import engine, scheduler
from tests.chaos.callers import Calls, at_last, call_on, see_to
from tests.chaos.clockwork import ENTRIES, FastClock, next_minute, stored, ticks_of
from tests.chaos.fleet import LEASE, Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import I6, I8, History, violations
from tests.chaos.scenario import Report, main

LIMIT = 8
CALLERS = 2
BETWEEN = 0.2, 1.5
"""Seconds between two faults."""
LULL_EVERY = 20
"""Faults after which the fleet is left alone for a moment, so that it can be seen how it recovers."""
TO_RECOVER = 120.0
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
"""When the schedule plays, so that its jobs are due at once."""

logger = logging.getLogger("chaos")


def storm(place: Place, *, minutes: float = 10.0, jobs: int = 50_000, nodes: int = 5) -> Report:
    """So many jobs in so much time, while processes and the server are killed, frozen and cut off from each other."""
    clock = FastClock(time.monotonic(), LONG_AGO)
    end = time.monotonic() + 60 * minutes
    with Fleet(place) as fleet:
        callers = [fleet.start(call_on, Random.random, jobs / CALLERS / minutes / 60) for _ in range(CALLERS)]
        operator = fleet.start(operate)
        weather = Weather(place, fleet, [lambda: fleet.start(work, clock)] * nodes)
        first = next_minute(clock.now())
        while time.monotonic() < end:
            weather.turns()
        weather.lull()
        last = clock.now()
        place.enough()
        fleet.until(
            "nobody calls any more", lambda: not operator.is_alive() and not any(one.is_alive() for one in callers)
        )
        fleet.until("all jobs have ended", place.is_done, TO_RECOVER)
        fleet.stop()
    history, calls = place.history(), Calls(place)
    fired = stored(place)
    wrong = weather.wrong + violations(history) + calls.wrong + place.left_behind()
    wrong += [f"I7: {count} jobs of {name} at {at:%H:%M}" for (name, at), count in fired.items() if count > 1]
    wrong += [line["text"] for line in place.logged() if line["logger"] == logger.name]
    due = {(name, at) for name, text in ENTRIES.items() for at in ticks_of(text, first, last)}
    return {
        "faults": dict(weather.faults),
        "accepted": len(history.accepted),
        "lost": len(history.accepted - history.rows.keys()),
        "unknown": dict(calls.unknown),
        "states": history.counts(),
        "runs": sum(map(len, history.runs.values())),
        "repeated": len(history.repeated()),
        "stale": len(history.stale),
        "leases_lost": sum("lost its lease" in line["text"] for line in place.logged()),
        "ticks": fired.total(),
        "ticks_skipped": len(due - fired.keys()),
        "looks": weather.looks,
        "recovered_after": max(weather.recovered_after),
        "violations": wrong,
    }


class Weather:
    """Who lives, and what happens to them."""

    def __init__(self, place: Place, fleet: Fleet, starts: list[Callable[[], BaseProcess]]) -> None:
        self._place = place
        self._fleet = fleet
        self._starts = starts
        self._nodes = [start() for start in starts]
        self._dice = place.dice()
        self._held: dict[int, float] = {}
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.looks = 0
        self.recovered_after: list[tuple[Any, ...]] = []
        """The seconds of each lull, and what was last over in it."""

    def turns(self) -> None:
        """One fault, or several at once."""
        deeds = {self._kill: 5, self._dismiss: 1, self._hold: 4, self._cut: 4, self._restart: 2, self._freeze: 2}
        [deed] = self._dice.choices(list(deeds), list(deeds.values()))
        deed()
        self.faults[deed.__name__.removeprefix("_")] += 1
        time.sleep(self._dice.uniform(*BETWEEN))
        self._let_go(time.monotonic())
        if self.faults.total() % LULL_EVERY == 0:
            self.lull()

    def lull(self) -> None:
        """Nothing happens until nothing executes any more in the name of the dead."""
        self._let_go(float("inf"))
        began, found = time.monotonic(), list[str]()

        def is_over() -> bool:
            found[:0] = late = self._look(I8)
            return not late

        self._fleet.until("the dead execute nothing", is_over, TO_RECOVER)
        self.recovered_after.append((round(time.monotonic() - began, 1), *found[:1]))
        self.wrong += self._look(I6) + self._place.database.unsound()
        self.looks += 1

    def _look(self, invariant: Any) -> list[str]:
        history = History(LEASE)
        history.look(self._place.database.snapshot())
        return violations(history, [invariant])

    def _some(self) -> tuple[int, BaseProcess]:
        index = self._dice.randrange(len(self._nodes))
        return index, self._nodes[index]

    def _kill(self) -> None:
        index, node = self._some()
        self._held.pop(node.pid or 0, None)
        self._fleet.kill(node)
        self._nodes[index] = self._starts[index]()

    def _dismiss(self) -> None:
        """A deployment."""
        index, node = self._some()
        if self._held.pop(node.pid or 0, None) is not None:
            os.kill(node.pid or 0, signal.SIGCONT)
        self._fleet.dismiss(node)
        self._nodes[index] = self._starts[index]()

    def _hold(self) -> None:
        """A process stands still, mostly for longer than its lease, and goes on as if nothing had been."""
        _, node = self._some()
        os.kill(node.pid or 0, signal.SIGSTOP)
        self._held[node.pid or 0] = time.monotonic() + self._dice.uniform(0.5, 3 * LEASE)

    def _let_go(self, by: float) -> None:
        for pid in [pid for pid, until in self._held.items() if until <= by]:
            del self._held[pid]
            os.kill(pid, signal.SIGCONT)

    def _cut(self) -> None:
        """Some connections end, or all."""
        most = self._dice.choice([1, 5, 1000])
        self._place.ask(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
            f"WHERE application_name LIKE 'process-%' ORDER BY random() LIMIT {most}) AS chosen"
        )

    def _restart(self) -> None:
        self._place.server.restart(self._dice.choice(["immediate", "fast"]))

    def _freeze(self) -> None:
        self._place.server.freeze()
        try:
            time.sleep(self._dice.uniform(0.2, 2 * LEASE))
        finally:
            self._place.server.thaw()


# --- inside the processes ---


async def work(place: Place, clock: FastClock) -> None:
    """A node that knows all cron entries, and looks at the clock as often as befits its speed."""
    scheduler.LOOK_EVERY = 0.01
    # all but the schedule goes by the server's clock
    vars(engine)["Scheduler"] = lambda host, entries, _: scheduler.Scheduler(host, entries, clock)
    dice = place.dice()

    async def body(_args: object) -> None:
        await run(dice)

    worker = place.worker("work", body, retry_strategy=ConstantBackoff(0.05))
    jobs = place.supervisor(worker, limit=LIMIT, max_rescues=50, shutdown_timeout=5.0)
    for name, text in ENTRIES.items():
        jobs.register_cron(name, text, "work", opts=JobOpts(max_attempts=50))
    async with at_last(jobs):
        await until_asked_to_stop()
        if not jobs.is_running:
            logger.error("a Supervisor has stopped by itself")


async def run(dice: Random) -> None:
    """In one of the ways that a run can go; a few are longer than a lease."""
    fate = dice.random()
    await asyncio.sleep(dice.uniform(0, 1.5 * LEASE) if fate > 0.99 else 0.05 * fate)
    if fate < 0.03:
        raise Snooze(fate)
    if fate < 0.1:
        raise RuntimeError("tried again soon")


async def operate(place: Place) -> None:
    """Pause, resume, scale, cancel, until it is enough; leave the queue as it was."""
    dice = place.dice()
    async with at_last(place.supervisor(queues={})) as jobs:
        while True:
            try:
                await jobs.pause_queue("default")
                asked = JobQuery(states=[JobState.available, JobState.executing], limit=20)
                for job in dice.sample(found := list(await jobs.find(asked)), min(3, len(found))):
                    await jobs.cancel(job.id)
                await asyncio.sleep(dice.uniform(0, 0.1))
                await jobs.resume_queue("default")
                await jobs.scale_queue("default", dice.randrange(4, LIMIT + 1))
                await jobs.counts()
                await asyncio.sleep(dice.uniform(0, 0.5))
                if place.is_enough:
                    return await jobs.scale_queue("default", None)
            except (IllegalTransition, JobNotFound):
                continue
            except StoreError as error:
                see_to(error)
            except Exception as error:
                logger.exception("raised to a caller: %s", type(error).__name__)


if __name__ == "__main__":
    main(storm, "postgres", durable=True)
