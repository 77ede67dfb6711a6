"""A forgotten close never keeps the interpreter alive."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.sqlite.support import ask, can_be_written_at_once, running

WHATS = ("store", "busy_store", "supervisor", "producer")
QUIET = ("store", "producer")
"""With nothing under way there is nothing to complain about either."""
HOWS = {"returns": 0, "raises": 1, "exits": 3}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("what", WHATS)
def test_row_73_a_process_that_closes_nothing_ends_by_itself_within_2_seconds(path: Path, what: str, how: str) -> None:
    with running("forgotten", path, what, how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leaving\n", process.communicate()[1]
        _, err = process.communicate(timeout=2)
    assert process.returncode == HOWS[how], err
    if what in QUIET:
        assert err.count("Traceback") == (how == "raises")
    assert can_be_written_at_once(path)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


def test_row_73_a_store_that_was_collected_unclosed_ends_with_the_process_too(path: Path) -> None:
    with running("forgotten", path, "store", "collects") as process:
        process.communicate(timeout=10)
    assert process.returncode == 0
    assert ask(path, "SELECT count(*) FROM jobs_async_jobs") == [(1,)]


def test_a_store_says_that_it_belongs_to_another_event_loop_instead_of_hanging(tmp_path: Path) -> None:
    program = f"""
import asyncio
from jobs_async import SqliteStore, StoreError, Supervisor

async def elsewhere(store):
    try:
        await store.enqueue("work")
    except StoreError as error:
        return str(error)

async def main():
    async with SqliteStore({str(tmp_path / "jobs.db")!r}) as store:
        print(await asyncio.to_thread(lambda: asyncio.run(elsewhere(store))))

asyncio.run(main())

jobs = Supervisor("sqlite:///{tmp_path / "jobs.db"}")

async def again():
    job = await jobs.enqueue("work")
    print("stored", job.id)

asyncio.run(again())
asyncio.run(again())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    first, *stored = done.stdout.splitlines()
    assert "another event loop" in first
    assert stored == ["stored 1", "stored 2"]


def test_row_54_an_enqueue_cut_short_by_the_end_of_the_program_is_stored_once_or_not_at_all(tmp_path: Path) -> None:
    """The loop may end while the writer commits: it must neither repeat what came through, nor wait for ever."""
    program = """
import asyncio, sys
from jobs_async import Draft, SqliteStore

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    async def put(n):
        await store.enqueue("work", {"n": n})
    tasks = [asyncio.create_task(put(n)) for n in range(3)]
    await asyncio.sleep(float(sys.argv[2]))

asyncio.run(main())
"""
    for number, delay in enumerate([0.0, 0.0003, 0.0005, 0.0008, 0.0012, 0.002]):
        path = tmp_path / f"{number}.db"
        command = [sys.executable, "-c", program, str(path), str(delay)]
        subprocess.run(command, capture_output=True, timeout=20, check=True)
        with closing(sqlite3.connect(path)) as db:
            stored = [args for (args,) in db.execute("SELECT args FROM jobs_async_jobs")]
        assert len(stored) == len(set(stored)) <= 3
