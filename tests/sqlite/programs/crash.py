"""Enqueues, claims and settles until it is killed, and says each thing before it tries it or after it is done.

    python crash.py FILE SEED

Lines: `new ID` acknowledged enqueue; `claim ID CLAIM` claimed; `try ID CLAIM` about to settle; `done ID` settled.
"""

from __future__ import annotations

import asyncio
import os
import sys
from random import Random

from jobs_async.core.lifecycle import decide
from jobs_async.core.options import NewJob
from jobs_async.core.outcome import Completed, Failed, Failure
from jobs_async.stores.sqlite import SqliteStore


def say(*words: object) -> None:
    """One write, so that a kill leaves whole lines."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def enqueue(store: SqliteStore, rng: Random) -> None:
    while True:
        new = [NewJob("work", "{}") for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.3:
            new.append(NewJob("work", "{}", idempotency_key=f"{os.getpid()}-{rng.random()}"))
        for job in await store.insert(new):
            say("new", job.id)
        await asyncio.sleep(0)


async def settle(store: SqliteStore, rng: Random) -> None:
    while True:
        jobs = (await store.fetch("default", rng.randrange(1, 5), node=None)).jobs
        for job in jobs:
            say("claim", job.id, job.claim)
        for job in jobs:
            say("try", job.id, job.claim)
        fails = rng.random() < 0.2
        outcome = Failed(Failure("Error", "boom")) if fails else Completed('"done"')
        for settled in await store.apply([decide(job, outcome) for job in jobs]):
            if settled is not None and not fails:
                say("done", settled.id)
        await asyncio.sleep(0)


async def main(path: str, seed: int) -> None:
    rng = Random(seed)
    async with SqliteStore(path) as store, asyncio.TaskGroup() as group:
        say("ready")
        for one in (enqueue, enqueue, settle, settle):
            group.create_task(one(store, rng))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
