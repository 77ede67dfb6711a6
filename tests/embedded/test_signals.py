"""Without a server: `asyncio.run` under Ctrl-C, and a worker process that is told to end at any moment."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from jobs_async import JobState, SqliteStore, Supervisor
from tests.conftest import Measured
from tests.embedded.support import File, program, within
from tests.sqlite.support import ask, can_be_written_at_once

PROGRAMS = Path(__file__).parent / "programs"
SLACK = 6.0


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "jobs.db")


@pytest.mark.parametrize("grace", [10, 0.2])
def test_ctrl_c_under_asyncio_run_stops_properly(file: File, grace: float) -> None:
    with program(PROGRAMS / "main.py", file.path, grace) as main:
        main.says("ready")
        (short,) = file.put("short")
        main.says("short began")
        with within(grace + SLACK):
            main.send(signal.SIGINT)
            main.says("stopping")
            if grace == 10:
                file.path.with_name("go").touch()
            assert main.end() == -signal.SIGINT, "as Python ends on Ctrl-C"
    file.is_left_clean()
    job = file.job(short)
    assert (job.state, job.attempt) == ((JobState.completed, 1) if grace == 10 else (JobState.available, 0))


def test_a_second_ctrl_c_ends_the_process_and_loses_nothing(file: File) -> None:
    """Python itself then drops the event loop: what ran may stay executing, and is rescued when the lease runs out."""
    with program(PROGRAMS / "main.py", file.path, 100) as main:
        main.says("ready")
        (short,) = file.put("short")
        main.says("short began")
        main.send(signal.SIGINT)
        main.says("in the middle of it")
        with within(SLACK):
            main.send(signal.SIGINT)
            assert main.end() == -signal.SIGINT
    assert file.job(short).state in (JobState.executing, JobState.available, JobState.retryable)
    assert can_be_written_at_once(file.path)
    assert ask(file.path, "PRAGMA integrity_check") == [("ok",)]


async def test_row_5_a_start_that_is_cancelled_at_any_point_leaves_no_live_node(file: File) -> None:
    """A node that never began to run must not be taken for one that has workers and holds a lease."""
    async with SqliteStore(file.path) as store:
        steps = started = 0
        while started < 3:
            jobs = Supervisor(f"sqlite:///{file.path}")
            host = asyncio.create_task(jobs.run())
            for _ in range(steps):
                await asyncio.sleep(0)
            started += jobs.is_running
            steps += 1 + steps // 8
            host.cancel()
            await asyncio.wait({host})
            assert not any(node.alive for node in await store.nodes()), f"cancelled after {steps} steps"


JOBS = 20
"""So many are put in wherever fewer wait."""


@pytest.mark.parametrize("stops", [6, pytest.param(200, marks=pytest.mark.soak)])
def test_row_5_a_worker_told_to_end_at_any_moment_leaves_nothing_executing_and_loses_nothing(
    file: File, stops: int, measured: Measured
) -> None:
    seed = 20250314
    rng = Random(seed)
    began: Counter[int] = Counter()
    ended: Counter[int] = Counter()
    put: set[int] = set()
    for number in range(stops):
        if not put or file.count(JobState.available) < JOBS:
            put.update(file.put(*["brief", "plain"] * (JOBS // 2)))
        where = f"seed {seed}, stop {number}"
        with program(PROGRAMS / "worker.py", file.path) as worker:
            worker.says("^began" if number % 2 else "ready")
            time.sleep(rng.uniform(0, 0.15))
            with within(0.3 + SLACK):
                worker.send(signal.SIGTERM)
                assert worker.end() == 0, f"{where}: {worker.text}"
        began.update(int(job_id) for (job_id,) in worker.words("began"))
        ended.update(int(job_id) for (job_id,) in worker.words("ended"))
        file.is_left_clean()
    with program(PROGRAMS / "worker.py", file.path) as worker:
        file.wait_for(JobState.completed, len(put))
        worker.send(signal.SIGTERM)
        worker.end()
    began.update(int(job_id) for (job_id,) in worker.words("began"))
    ended.update(int(job_id) for (job_id,) in worker.words("ended"))
    file.is_left_clean()
    assert ended == Counter(put), f"seed {seed}: each job came to its end once"
    rows = ask(file.path, "SELECT attempt, rescues, errors, count(*) FROM jobs_async_jobs GROUP BY 1, 2, 3")
    assert rows == [(1, 0, None, len(put))], f"seed {seed}: an interruption costs no attempt"
    cut = sum(began.values()) - len(put)
    assert cut, "no stop met a running job"
    measured("row 5", f"SIGTERM at {stops} points, {len(put):,} jobs", f"lost 0, stuck 0, cut and run again {cut:,}")
