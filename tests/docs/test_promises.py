"""What the README promises, one test each, where nothing nearer to the code proves it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from jobs_async import JobState, SqliteStore, StaleSettlement, Supervisor, Telemetry, worker

FAST: dict[str, Any] = {"heartbeat": 0.05, "lease": 0.4, "rescue_interval": 0.1, "poll_interval": 0.05}


def program(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process of its own, that prints a line when it wants to be looked at."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def kill_after_first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with process:
        line = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGKILL)
    return line


@worker
async def work() -> str:
    return "done"


async def test_what_enqueue_returned_survives_a_kill(tmp_path: Path) -> None:
    code = """
        import asyncio
        from jobs_async import Supervisor

        async def main():
            jobs = Supervisor("sqlite:///jobs.db", queues={})
            print((await jobs.enqueue("work")).id, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    job_id = int(kill_after_first_line(program(code, tmp_path)))
    async with SqliteStore(tmp_path / "jobs.db") as store:
        assert (await store.get(job_id)).state is JobState.available


async def test_a_job_whose_process_was_killed_runs_again(tmp_path: Path) -> None:
    code = f"""
        import asyncio
        from jobs_async import Supervisor

        jobs = Supervisor("sqlite:///jobs.db", **{FAST})

        @jobs.worker
        async def work() -> str:
            print("started", flush=True)
            await asyncio.sleep(60)

        async def main():
            async with jobs:
                await jobs.wait(await work.enqueue())

        asyncio.run(main())
    """
    assert kill_after_first_line(program(code, tmp_path)) == "started"
    async with Supervisor(SqliteStore(tmp_path / "jobs.db"), workers=[work], **FAST) as jobs:
        job = await jobs.wait(1, timeout=20)
    assert (job.state, job.result, job.attempt, job.rescues) == (JobState.completed, "done", 2, 1)
    assert [error.error for error in job.errors] == ["rescued: node lost"]


async def test_a_job_may_run_longer_than_a_lease_and_is_started_once() -> None:
    starts: list[int] = []
    long = asyncio.Event()

    @worker
    async def slow() -> None:
        starts.append(1)
        await long.wait()

    async with Supervisor(workers=[slow], **FAST) as jobs:
        job = await slow.enqueue()
        asyncio.get_running_loop().call_later(3 * FAST["lease"], long.set)
        assert (await jobs.wait(job, timeout=20)).rescues == 0
    assert starts == [1]


async def test_an_outcome_of_a_lost_claim_is_dropped() -> None:
    told: list[str] = []
    telemetry = Telemetry()
    telemetry.attach(lambda event: told.append(event.type))
    go_on = asyncio.Event()

    @worker(context=True)
    async def frozen(ctx) -> str:
        if ctx.attempt == 1:
            await go_on.wait()
            return "too late"
        return "in time"

    async with Supervisor(workers=[frozen], telemetry=telemetry, **FAST) as jobs:
        job = await frozen.enqueue()
        while "job_started" not in told:
            await asyncio.sleep(0)
        while not await jobs.store.rescue_stuck(0):  # stands for a rescue by another process
            await asyncio.sleep(0)
        assert await jobs.result(job, timeout=20) == "in time"
        go_on.set()
        while StaleSettlement.type not in told:
            await asyncio.sleep(0)
        assert (await jobs.get(job.id)).result == "in time"


async def test_a_full_queue_holds_up_no_other() -> None:
    release = asyncio.Event()

    @worker(queue="slow")
    async def stuck() -> None:
        await release.wait()

    async with Supervisor(queues={"slow": 1, "default": 1}, workers=[stuck, work]) as jobs:
        waiting = [await stuck.enqueue() for _ in range(3)]
        assert await jobs.result(await work.enqueue(), timeout=20) == "done"
        assert (await jobs.get(waiting[-1].id)).state is JobState.available
        release.set()


async def test_a_stop_ends_reports_what_does_not_and_hands_back_what_does() -> None:
    release = asyncio.Event()

    @worker
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    @worker
    async def polite() -> None:
        await release.wait()

    jobs = Supervisor(workers=[stubborn, polite], shutdown_timeout=0.1)
    await jobs.start()
    stuck, cut = await stubborn.enqueue(), await polite.enqueue()
    while (await jobs.get(cut.id)).state is not JobState.executing:
        await asyncio.sleep(0)
    async with asyncio.timeout(0.1 + 6):
        report = await jobs.stop()
    assert not report.is_clean
    assert report.still_running == (stuck.id,)
    handed_back = await jobs.get(cut.id)
    assert (handed_back.state, handed_back.attempt) == (JobState.available, 0)
    release.set()


async def test_a_pause_holds_across_a_restart(tmp_path: Path) -> None:
    async with Supervisor(SqliteStore(tmp_path / "jobs.db"), workers=[work]) as jobs:
        await jobs.pause_queue("default")
        job = await work.enqueue()
    async with Supervisor(SqliteStore(tmp_path / "jobs.db"), workers=[work]) as jobs:
        await jobs.enqueue("work", queue="elsewhere")
        assert (await jobs.get(job.id)).state is JobState.available
        await jobs.resume_queue("default")
        assert await jobs.result(job, timeout=20) == "done"
