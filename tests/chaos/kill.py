"""F1, F2: worker processes are killed one after the other, in the middle of their work."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from multiprocessing.synchronize import Event as EventType

from jobs_async import ConstantBackoff, Draft, JobOpts, JobState
from tests.chaos.database import AT_MOST
from tests.chaos.fleet import Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import violations
from tests.chaos.scenario import Report, main

NODES, LIMIT = 4, 8
KEYS = 10
BACKLOG = 500
OPTS = JobOpts(max_attempts=50)


def kill(place: Place, *, kills: int = 100, jobs: int = 20_000) -> Report:
    """Kill a node every 100 to 400 ms and start another in its place, while jobs of 0 to 5 ms run."""
    dice, is_over = place.dice(), multiprocessing.Event()
    wrong: list[str] = []
    at_work = 0
    with Fleet(place) as fleet:
        producer = fleet.start(produce, jobs, is_over)
        nodes = [fleet.start(work) for _ in range(NODES)]
        fleet.until("they work", lambda: place.count("completed_at IS NOT NULL"))
        for _ in range(kills):
            time.sleep(dice.uniform(0.1, 0.4))
            index = dice.randrange(NODES)
            fleet.kill(nodes[index])
            at_work += not place.is_done()
            wrong += place.check_now()
            nodes[index] = fleet.start(work)
        is_over.set()
        fleet.until("all jobs are accepted", lambda: not producer.is_alive(), 120)
        fleet.until("all jobs have ended", place.is_done)
        held = connections(place, fleet)
        fleet.stop()
    history = place.history()
    repeated = history.repeated()
    wrong += violations(history) + place.left_behind()
    wrong += [f"a process holds {most} connections" for most in held if most > AT_MOST]
    wrong += [f"job {run.id} ran again in attempt {run.attempt}" for _, run in repeated if run.attempt < 2]
    for pid, count in Counter(first.pid for first, _ in repeated).items():
        if pid not in history.killed:
            wrong.append(f"{count} jobs of process {pid}, which nobody killed, ran again")
        elif count > LIMIT:
            wrong.append(f"{count} jobs of process {pid} ran again; it can run {LIMIT} at once")
    stuck = [row.id for row in history.rows.values() if row.state is not JobState.completed]
    if stuck:
        wrong.append(f"{len(stuck)} jobs were not completed: {stuck[:10]}")
    return {
        "accepted": len(history.accepted),
        "kills_at_work": at_work,
        "lost": len(history.accepted - history.rows.keys()),
        "stuck": len(stuck),
        "duplicates": len(repeated),
        "bound": kills * LIMIT,
        "connections": held,
        "violations": wrong,
    }


def connections(place: Place, fleet: Fleet) -> list[int]:
    """How many each of the living holds, once the dead hold none."""
    dead = place.history().killed.keys()
    fleet.until("the dead hold no connection", lambda: not dead & place.database.connections().keys())
    return sorted(place.database.connections().values())


async def work(place: Place) -> None:
    async def body(seconds: float) -> None:
        await asyncio.sleep(seconds)

    worker = place.worker("work", body, retry_strategy=ConstantBackoff(0.05))
    async with place.supervisor(worker, limit=LIMIT, max_rescues=50):
        await until_asked_to_stop()


async def produce(place: Place, jobs: int, is_over: EventType) -> None:
    """At least so many jobs, and some to do at each kill: nine tenths in bulk, the rest under unique keys."""
    dice = place.dice()
    async with place.supervisor(queues={}) as supervisor:

        async def keep_them_busy() -> None:
            left = jobs * 9 // 10
            while left > 0 or not is_over.is_set():
                if place.count("state = 0") < BACKLOG:
                    drafts = [Draft("work", dice.uniform(0, 0.005), OPTS) for _ in range(BACKLOG)]
                    place.ledger.mark("A", *await supervisor.enqueue_many(drafts))
                    left -= BACKLOG
                await asyncio.sleep(0.05)

        async def one_after_the_other(key: str) -> None:
            """A job is accepted only when the one before it has ended: a frozen one would hold its key for ever."""
            left = jobs // 10 // KEYS
            while left:
                job = await supervisor.enqueue("work", 0.005, OPTS, unique_key=key, priority=-1)
                if job.duplicate:
                    await asyncio.sleep(0.03)
                else:
                    place.ledger.mark("A", job)
                    left -= 1

        async with asyncio.TaskGroup() as group:
            group.create_task(keep_them_busy())
            for number in range(KEYS):
                group.create_task(one_after_the_other(f"key-{number}"))


if __name__ == "__main__":
    main(kill)
