"""Enqueues, claims and settles on a file that others work on too, until all jobs of all of them are done.

python work.py FILE NAME OWN TOTAL        prints what was done, as JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import count
from typing import Any

from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import decide
from jobs_async.core.options import NewJob
from jobs_async.core.outcome import Completed
from jobs_async.core.store import JobQuery, Node
from jobs_async.stores.sqlite import SqliteStore

SHARED = 40
"""Jobs that everybody enqueues under the same idempotency keys."""


async def work(path: str, name: str, own: int, total: int) -> dict[str, Any]:
    """Enqueue `own` jobs and the shared ones, and settle until `total` are completed in the file."""
    enqueued: list[int] = []
    fresh: list[int] = []
    claims: list[tuple[int, int]] = []
    completed: list[int] = []

    async def enqueue() -> None:
        for number in range(own):
            [job] = await store.insert([NewJob("work", json.dumps([name, number]))])
            enqueued.append(job.id)
            if number < SHARED:
                [job] = await store.insert([NewJob("shared", "{}", idempotency_key=f"shared-{number}")])
                fresh.extend([] if job.duplicate else [job.id])

    async def settle() -> None:
        for turn in count():
            fetched = (await store.fetch("default", 7, node=name)).jobs
            claims.extend((job.id, job.claim) for job in fetched)
            settled = await store.apply([decide(job, Completed(json.dumps(name))) for job in fetched])
            completed.extend(job.id for job in settled if job is not None)
            if turn % 10 == 0:
                assert (await store.beat(Node(id=name), 60.0)).alive
                await store.set_queue("default", limit=7)
            if not fetched:
                if (await store.tally()).get(("default", JobState.completed), 0) >= total:
                    return
                await store.select(JobQuery(states=[JobState.executing]))

    async with asyncio.timeout(60), SqliteStore(path) as store:
        await store.beat(Node(id=name), 60.0, join=True)
        async with asyncio.TaskGroup() as group:
            for one in (enqueue, settle, settle):
                group.create_task(one())
    return {"enqueued": enqueued, "fresh": fresh, "claims": claims, "completed": completed}


if __name__ == "__main__":
    path, name, own, total = sys.argv[1:]
    print(json.dumps(asyncio.run(work(path, name, int(own), int(total)))))
