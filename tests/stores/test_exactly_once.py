"""A ledger that is paid into by jobs whose processes are killed: each job has one line, however often it was begun."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs_async import Draft, Supervisor
from tests.conftest import Measured
from tests.postgres.support import ROOT, ask

PROGRAM = Path(__file__).parent / "programs" / "money.py"
LEDGER = "CREATE TABLE ledger (job_id bigint, amount bigint)"
PAID = "SELECT job_id, amount FROM ledger ORDER BY job_id"
STORED = "SELECT id, state, result, rescues FROM jobs_async_jobs ORDER BY id"
SECONDS = 100.0
COMPLETED = 2


@contextmanager
def paying(url: str, place: str) -> Generator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(PROGRAM), url, place],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def killed(url: str, place: str, lines: int) -> list[str]:
    """What a process said until it was killed, which it was when it had said so much."""
    with paying(url, place) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        rest, errors = process.communicate(timeout=SECONDS)
    assert all(line.startswith("rescued ") for line in errors.splitlines()), errors
    return [*said, *rest.splitlines(keepends=True)]


def to_the_end(url: str, place: str) -> None:
    with paying(url, place) as process:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors


def half_done(said: list[str]) -> int:
    """How many had committed when the process died, and had not ended."""
    ids = {what: {line.split()[1] for line in said if line.startswith(what) and line.endswith("\n")} for what in STEPS}
    return len(ids["committed"] - ids["ended"])


STEPS = ("begun", "paid", "completed", "committed", "ended")


async def rows(place: str, sql: str) -> list[tuple[Any, ...]]:
    if place.startswith("postgresql"):
        return await ask(place, sql)
    with closing(sqlite3.connect(place)) as connection, connection:
        return connection.execute(sql).fetchall()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The URL of the store, and where the application finds the same database."""
    if request.param == "sqlite":
        path = str(tmp_path / "jobs.db")
        return f"sqlite:///{path}", path
    dsn: str = request.getfixturevalue("pg_dsn")
    return dsn, dsn


@pytest.mark.parametrize(
    "kills", [pytest.param(3), pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
async def test_each_job_has_one_line_however_often_its_process_is_killed(
    place: tuple[str, str], kills: int, measured: Measured
) -> None:
    url, address = place
    count, chance, half = 12 * kills, random.Random(), 0
    async with Supervisor(url, queues={}) as jobs:
        stored = await jobs.enqueue_many([Draft("pay", {"amount": n}) for n in range(count)])
    await rows(address, LEDGER)
    for _ in range(kills):
        said = await asyncio.to_thread(killed, url, address, chance.randrange(1, 50))
        half += half_done(said)
    await asyncio.to_thread(to_the_end, url, address)
    paid, ended = await rows(address, PAID), await rows(address, STORED)
    assert paid == [(job.id, job.args["amount"]) for job in stored]
    assert [(job_id, state, int(result)) for job_id, state, result, _ in ended] == [
        (job.id, COMPLETED, job.args["amount"]) for job in stored
    ]
    rescued = sum(rescues for *_, rescues in ended)
    assert rescued
    measured(
        f"kill -9 in a handler's own transaction, {url.partition(':')[0]}",
        f"{kills} kills, {count} jobs",
        f"{rescued} rescues, {half} killed after the commit; lines lost 0, twice 0",
    )
