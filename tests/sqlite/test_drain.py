"""Drain over a file: several Supervisors and processes work it off together, and none leaves what it could have run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from jobs_async import ConstantBackoff, Draft, JobQuery, JobState, SqliteStore, Supervisor, current_context
from jobs_async.runtime.drain import DrainReport
from tests.sqlite.support import ask, can_be_written_at_once, open_files, output, threads, until

PATIENCE = 60.0
AT_ONCE = ConstantBackoff(0)

BURST = """
import asyncio, sys
from jobs_async import Supervisor

jobs = Supervisor(f"sqlite:///{sys.argv[1]}", queues={"default": 4})

@jobs.worker
async def work(depth: int) -> None:
    for _ in range(2 if depth else 0):
        await work.enqueue(depth - 1)

async def main() -> None:
    report = await jobs.drain(timeout=60)
    await jobs.stop()
    print(report.completed, report.total)

asyncio.run(main())
"""


def supervisor(path: Path) -> Supervisor:
    """One that hears of what others bring only by asking anew."""
    return Supervisor(f"sqlite:///{path}", queues={"default": 4}, poll_interval=1000)


async def as_before(before: object) -> bool:
    """A thread may have told of its end, and not have ended yet."""
    return threads() == before


async def test_row_17_a_retried_job_is_never_left_and_nothing_stays_behind(path: Path) -> None:
    before = threads()
    jobs = supervisor(path)

    @jobs.worker(max_attempts=4, retry_strategy=AT_ONCE)
    async def flaky(failures: int) -> None:
        if current_context().attempt <= failures:
            raise OSError

    for _ in range(3):
        await jobs.enqueue_many([flaky.draft(n % 5) for n in range(20)])
        report = await jobs.drain(timeout=PATIENCE)
        assert report == DrainReport(completed=16, failed=4 * (1 + 2 + 3 + 3), discarded=4)
        assert not await jobs.find(JobQuery(due=True))
        assert not any(node.alive for node in await jobs.store.nodes())
    await jobs.stop()
    assert await until(lambda: as_before(before))
    assert not open_files(path)
    assert can_be_written_at_once(path)


async def test_scheduled_jobs_are_brought_forward_once_an_attempt(path: Path) -> None:
    jobs = supervisor(path)

    @jobs.worker(max_attempts=3)
    async def work(*, fails: bool) -> None:
        if fails:
            raise OSError

    await jobs.enqueue_many([work.options(delay=3600).draft(fails=bool(n % 2)) for n in range(10)])
    await jobs.pause_queue("side")
    await work.options(queue="side", delay=3600).enqueue(fails=False)
    assert await jobs.drain() == DrainReport()
    report = await jobs.drain(with_scheduled=True, timeout=PATIENCE)
    assert report == DrainReport(completed=5, failed=10, discarded=5)
    await jobs.stop()


async def test_all_queues_paused_means_nothing_to_do(path: Path) -> None:
    jobs = supervisor(path)
    await jobs.enqueue("work")
    await jobs.pause_queue("default")
    assert await jobs.drain(with_scheduled=True, timeout=PATIENCE) == DrainReport()
    await jobs.stop()


async def test_several_supervisors_drain_one_file_and_each_run_is_counted_once(path: Path) -> None:
    ran: list[int] = []
    async with SqliteStore(path) as store:
        team = [Supervisor(store, queues={"default": 4}, poll_interval=1000) for _ in range(3)]

        async def work(depth: int, _ctx: object) -> None:
            ran.append(depth)
            for _ in range(2 if depth else 0):
                await current_context().enqueue(Draft("work", depth - 1))

        for one in team:
            one.register_worker("work", work)
        for _ in range(8):
            await store.enqueue("work", 3)
        reports = await asyncio.gather(*(one.drain(timeout=PATIENCE) for one in team))
        last = await team[0].drain(timeout=PATIENCE)
        assert sum(report.completed for report in (*reports, last)) == len(ran) == 8 * 15
        assert await store.tally() == {("default", JobState.completed): 8 * 15}
        assert not any(node.alive for node in await store.nodes())


async def test_several_processes_drain_one_file(path: Path) -> None:
    async with SqliteStore(path) as store:
        for _ in range(10):
            await store.enqueue("work", {"depth": 3})
    command = [sys.executable, "-W", "error", "-c", BURST, str(path)]
    team = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    try:
        said = [await asyncio.to_thread(output, process) for process in team]
    finally:
        for process in team:
            process.kill()
    counted = [[int(word) for word in line.split()] for line in said]
    assert sum(completed for completed, _ in counted) == sum(total for _, total in counted) == 10 * 15
    assert ask(path, "SELECT state, attempt, count(*) FROM jobs_async_jobs GROUP BY 1, 2") == [
        (int(JobState.completed), 1, 10 * 15)
    ]


async def test_a_timeout_hands_back_what_runs_and_leaves_no_thread_and_no_lease(path: Path) -> None:
    before = threads()
    jobs = Supervisor(f"sqlite:///{path}", shutdown_timeout=0)

    @jobs.worker
    async def work() -> None:
        await asyncio.Event().wait()

    job = await work.enqueue()
    with pytest.raises(TimeoutError):
        await jobs.drain(timeout=0.5)
    handed_back = await jobs.get(job)
    assert (handed_back.state, handed_back.attempt) == (JobState.available, 0)
    assert not any(node.alive for node in await jobs.store.nodes())
    await jobs.stop()
    assert await until(lambda: as_before(before))
    assert can_be_written_at_once(path)
