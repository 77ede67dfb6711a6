"""F6: many kinds of processes on one file, and a reader that will not let go of an old snapshot."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sqlite3
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from multiprocessing.synchronize import Event as EventType
from typing import Any

from jobs_async import Draft, IllegalTransition, JobQuery, JobState, StoreError
from tests.chaos.fleet import HEARTBEAT, LEASE, Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import violations
from tests.chaos.scenario import Report, main

LIMIT = 8
RATE = 500
"""Enqueues a second."""
ROOM = 8 * 2**20
"""Bytes to which the write-ahead log has to come down again."""
SOON = 5.0
"""Seconds in which it has to, once no reader is in the way."""

logger = logging.getLogger("chaos")


def contention(
    place: Place, *, jobs: int = 10_000, pin: float = 20.0, nodes: int = 2, beat: float = HEARTBEAT
) -> Report:
    """Pin a snapshot twice: once letting go while all are busy, once when nothing is left to do."""
    enough = multiprocessing.Event()
    wal = Wal(place)
    with Fleet(place) as fleet:
        for _ in range(nodes):
            fleet.start(work, beat)
        operator = fleet.start(operate, enough)
        producer = fleet.start(produce, jobs, enough)
        fleet.until("jobs are done", lambda: place.count("completed_at IS NOT NULL"))
        with pinned(place):
            time.sleep(pin)
        wal.comes_down(fleet, "all are busy")
        with pinned(place):
            time.sleep(pin / 4)
            enough.set()
            fleet.until("all is enqueued", lambda: not producer.is_alive() and not operator.is_alive())
            fleet.until("all jobs have ended", place.is_done)
        wal.comes_down(fleet, "nothing is left to do")
        fleet.stop()
    history = place.history(max(LEASE, 4 * beat))
    wrong = violations(history) + wal.wrong
    logged = place.logged()
    raised = [line["text"] for line in logged if line["logger"] == logger.name]
    wrong += [f"raised to a user: {text}" for text in raised]
    wrong += [f"job {run.id} ran again" for _, run in history.repeated()]
    if len(history.pids) < nodes:
        wrong.append("one node did everything")
    return {
        "accepted": len(history.accepted),
        "states": history.counts(),
        "duplicates": len(history.repeated()),
        "raised": len(raised),
        "warnings": len(logged) - len(raised),
        "wal": wal.told,
        "wal_peak": wal.peak,
        "violations": wrong,
    }


class Wal:
    """The size of the write-ahead log."""

    def __init__(self, place: Place) -> None:
        self._file = place.jobs.with_name(f"{place.jobs.name}-wal")
        self.peak = 0
        self.told: list[str] = []
        self.wrong: list[str] = []

    @property
    def size(self) -> int:
        return self._file.stat().st_size

    def comes_down(self, fleet: Fleet, when: str) -> None:
        peak, began = self.size, time.monotonic()
        self.peak = max(self.peak, peak)
        try:
            fleet.until("the log is short", lambda: self.size <= ROOM, SOON)
        except TimeoutError:
            self.wrong.append(f"the log has {self.size:,} bytes {SOON} s after the reader let go while {when}")
        took = time.monotonic() - began
        self.told.append(f"{peak / 2**20:.1f} to {self.size / 2**20:.1f} in {took:.2f} s while {when}")


@contextmanager
def pinned(place: Place) -> Iterator[None]:
    """A transaction that keeps its first look at the file, so that the log cannot be started anew."""
    with closing(sqlite3.connect(place.jobs, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM jobs_async_jobs").fetchall()
        yield
        db.execute("COMMIT")


async def unharmed(call: Coroutine[Any, Any, Any]) -> Any:
    """What a user asked for; an error that he should not meet is written down."""
    try:
        return await call
    except IllegalTransition:
        return None
    except StoreError as error:
        logger.error("%s: %s", type(error).__name__, error)
        return None


async def work(place: Place, beat: float) -> None:
    async def body(seconds: float) -> None:
        await asyncio.sleep(seconds)

    pace = {"heartbeat": beat, "lease": max(LEASE, 4 * beat)}
    async with place.supervisor(place.worker("work", body), limit=LIMIT, **pace):
        await until_asked_to_stop()


async def operate(place: Place, enough: EventType) -> None:
    """All that a command line can do, again and again."""
    dice = place.dice()
    async with place.supervisor(queues={}) as jobs:
        while not enough.is_set():
            await unharmed(jobs.pause_queue("default"))
            waiting = await unharmed(jobs.find(JobQuery(states=[JobState.available]))) or []
            for job in dice.sample(waiting, min(3, len(waiting))):
                await unharmed(jobs.cancel(job.id))
            await unharmed(jobs.resume_queue("default"))
            await unharmed(jobs.scale_queue("default", dice.randrange(4, LIMIT + 1)))
            await unharmed(jobs.counts())
            await asyncio.sleep(dice.uniform(0, 0.1))


async def produce(place: Place, jobs: int, enough: EventType) -> None:
    """So many jobs a second, one call each, however long each call takes."""
    dice = place.dice()
    loop = asyncio.get_running_loop()
    async with place.supervisor(queues={}) as supervisor:

        async def one() -> None:
            job = await unharmed(supervisor.enqueue(Draft("work", dice.uniform(0, 0.005))))
            if job is not None:
                place.ledger.mark("A", job)

        began, made = loop.time(), 0
        async with asyncio.TaskGroup() as group:
            while made < jobs or not enough.is_set():
                due = int((loop.time() - began) * RATE) + 1
                for _ in range(due - made):
                    group.create_task(one())
                made = due
                await asyncio.sleep(0.02)


if __name__ == "__main__":
    main(contention)
