"""The fixtures, in projects of their own: found by themselves, overridden, and whatever plugin runs async tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from tests.cluster import NAMED

ASYNCIO = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
addopts = --strict-markers -p no:cacheprovider -p no:anyio
filterwarnings = error
"""
ANYIO = """\
[pytest]
addopts = --strict-markers -p no:cacheprovider -p no:asyncio
filterwarnings = error
"""

WORKERS = """\
from jobs_async import worker

@worker
async def double(n: int) -> int:
    return 2 * n
"""
CONFTEST = """\
import pytest
import workers

@pytest.fixture
def jobs_workers():
    return [workers]

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
TESTS = """\
import pytest
from jobs_async import JobState
from jobs_async.testing import Harness, TravelClock, assert_enqueued, perform
from workers import double

{mark}

async def test_jobs(jobs):
    assert type(jobs) is Harness
    job = await double.enqueue(4)
    assert await assert_enqueued(double, {{"n": 4}}) == job
    assert (await jobs.drain()).completed == 1
    assert (await jobs.result(job)) == 8
    assert (await perform(double, {{"n": 1}})).result == 2

async def test_each_test_has_its_own(jobs):
    assert await jobs.find() == []

async def test_the_clock_is_that_of_the_jobs(jobs, jobs_clock):
    assert type(jobs_clock) is TravelClock
    await double.options(delay=60).enqueue(1)
    jobs_clock.advance(61)
    assert (await jobs.drain()).completed == 1

@pytest.mark.jobs_inline
async def test_inline(jobs):
    assert (await double.enqueue(4)).result == 8

async def test_not_inline(jobs):
    assert (await double.enqueue(4)).state is JobState.available

async def test_started(jobs):
    await jobs.start()
    assert await jobs.result(await double.enqueue(4)) == 8
    await jobs.stop()

async def test_each_store(jobs_store, jobs_clock):
    assert not jobs_store.is_open or type(jobs_store).__name__ == "MemoryStore"
    async with Harness(jobs_store, clock=jobs_clock, workers=[double]) as jobs:
        await double.options(delay=60).enqueue(1)
        jobs_clock.advance(61)
        assert (await jobs.drain()).completed == 1
"""

APP = """\
import pytest
from jobs_async import Supervisor
from workers import double

app = Supervisor("sqlite:////nowhere/to/be/found.db", workers=[double])

@pytest.fixture
def jobs_app():
    return app

async def test_the_application_enqueues_into_the_harness(jobs):
    await app.enqueue("double", {"n": 4})
    async with app:
        await double.enqueue(5)
    assert (await jobs.drain()).completed == 2

def test_it_is_given_back(jobs_app):
    assert "enqueue_many" not in vars(app)
"""


def run(folder: Path, *options: str, dsn: str | None = None) -> tuple[int, str]:
    """The exit code of pytest and what it prints; with PostgreSQL where a `dsn` is given."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:xdist", *options]
    environment = {name: value for name, value in os.environ.items() if name != NAMED} | ({NAMED: dsn} if dsn else {})
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.{'ini' if name == 'pytest' else 'py'}").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("plugin", ["asyncio", "anyio"])
def test_the_fixtures_work_with_every_plugin_that_runs_async_tests(tmp_path: Path, plugin: str) -> None:
    if plugin == "asyncio":
        write(tmp_path, pytest=ASYNCIO, test_app=APP)
    else:
        write(tmp_path, pytest=ANYIO)
    mark = "pytestmark = pytest.mark.anyio" if plugin == "anyio" else ""
    write(tmp_path, workers=WORKERS, conftest=CONFTEST, test_jobs=TESTS.format(mark=mark))
    code, output = run(tmp_path)
    assert code == 0, output
    assert f"{10 if plugin == 'asyncio' else 8} passed" in output
    for test in ("test_each_store[memory]", "test_each_store[sqlite]"):
        assert f"{test} PASSED" in output


async def test_postgresql_is_among_the_stores_where_it_is_named(tmp_path: Path, pg_dsn: str) -> None:
    write(tmp_path, pytest=ASYNCIO, workers=WORKERS, conftest=CONFTEST, test_jobs=TESTS.format(mark=""))
    code, output = await asyncio.to_thread(partial(run, tmp_path, "-k", "each_store", dsn=pg_dsn))
    assert code == 0, output
    assert "3 passed" in output
    assert "test_each_store[postgres] PASSED" in output
    connection = await asyncpg.connect(pg_dsn)
    try:
        assert not await connection.fetch("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'jobs%'"), "a schema was left"
    finally:
        await connection.close()


def test_without_an_override_it_knows_no_workers_and_warns_of_none(tmp_path: Path) -> None:
    write(
        tmp_path,
        pytest=ASYNCIO,
        test_bare="async def test_bare(jobs):\n    assert jobs.worker_names == set() and jobs.is_running\n",
    )
    code, output = run(tmp_path)
    assert code == 0, output


def test_what_it_offers_is_shown(tmp_path: Path) -> None:
    write(tmp_path, pytest=ASYNCIO)
    _, fixtures = run(tmp_path, "--fixtures")
    for name in ("jobs", "jobs_store", "jobs_workers", "jobs_app", "jobs_clock"):
        assert f"\n{name} -- " in fixtures
    _, markers = run(tmp_path, "--markers")
    assert (
        "@pytest.mark.jobs_inline: the `jobs` fixture runs each job that is due before its enqueue returns" in markers
    )
