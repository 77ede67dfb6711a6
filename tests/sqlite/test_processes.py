"""Any number of processes work on one file."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path

from jobs_async.core.job import JobState
from jobs_async.core.options import UniqueStrategy
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.programs.work import SHARED, work
from tests.sqlite.support import ask, new, output, running

OWN = 100
PROCESSES = 4
TOTAL = PROCESSES * OWN + SHARED


async def test_row_23_four_processes_complete_every_job_exactly_once_and_none_sees_a_lock(path: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(running("work", path, f"p{n}", OWN, TOTAL)) for n in range(PROCESSES - 1)]
        reports = [await work(str(path), "here", OWN, TOTAL)]
        reports += [json.loads(await asyncio.to_thread(output, process)) for process in others]
    enqueued = [job_id for report in reports for job_id in report["enqueued"] + report["fresh"]]
    claims = [tuple(claim) for report in reports for claim in report["claims"]]
    completed = [job_id for report in reports for job_id in report["completed"]]
    assert len(enqueued) == TOTAL
    assert sorted(enqueued) == sorted(completed) == sorted(job_id for job_id, _ in claims)
    assert len(set(enqueued)) == TOTAL
    assert ask(path, "SELECT state, attempt, claim, count(*) FROM jobs_async_jobs GROUP BY 1, 2, 3") == [
        (int(JobState.completed), 1, 1, TOTAL)
    ]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


async def test_row_71_stores_that_read_before_they_write_never_see_a_busy_snapshot(path: Path) -> None:
    async def contend(store: SqliteStore, number: int) -> None:
        for turn in range(15):
            key = f"key-{(turn + number) % 5}"
            await store.insert([new(unique_key=key, unique_strategy=UniqueStrategy.CANCEL_EXISTING)])
            await store.insert([new(unique_key=key)])

    async with asyncio.timeout(60), SqliteStore(path) as one, SqliteStore(path) as two, SqliteStore(path) as three:
        async with asyncio.TaskGroup() as group:
            for number, store in enumerate([one, two, three] * 2):
                group.create_task(contend(store, number))
        tally = await one.tally()
    assert tally == {("default", JobState.available): 5, ("default", JobState.cancelled): 6 * 15 - 5}
