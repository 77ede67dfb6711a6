"""A fault at every statement of the SQLite store: no job is lost, no transaction left open, nothing left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from jobs_async import JobQuery, JobState, UniqueConflict, UniqueStrategy
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.stores.sqlite.writer import SQL
from tests.conftest import Measured
from tests.faults.scene import Row, Scene
from tests.faults.statements import Statement, Statements, current, meanwhile, raising, watched
from tests.faults.sweep import Kind, Visit, quiet, sweep
from tests.sqlite.conftest import memory_folder as memory_folder
from tests.sqlite.conftest import path as path
from tests.sqlite.support import ask, can_be_written_at_once, new, open_files, threads

SIDE_BY_SIDE = 12
"""Scenes that are played at the same time, for they mostly wait."""

AUTOCOMMIT = ["COMMIT", "insert", "claim", "end", "apply", "delete"]
UNUSED = {"purge", "spend_tick", "link_tick", "forget_ticks", "prolong_node"}
UNUSED |= {"is_one_of", "in_queues", "has_worker", "has_external_id", "has_error", "has_tags", "has_args"}
UNUSED |= {"is_orphaned", "is_due", "is_due_in"}  # parts of questions, like those above
UNUSED |= {"by_ids"}  # where a job of a unique key is run anew
UNUSED |= {"put_record", "get_records", "drop_records"}  # not of jobs
"""What a Supervisor does not ask for, what only its watchdog does, and a piece of others."""

ANYWHERE: dict[str, Kind] = {
    "the file is busy": lambda _: raising("SQLITE_BUSY"),
    "a table is locked": lambda _: raising("SQLITE_LOCKED"),
    "the disk fails": lambda _: raising("SQLITE_IOERR"),
    "the disk is full": lambda _: raising("SQLITE_FULL"),
    "its callers are cancelled": lambda scene: meanwhile(scene.cancel_callers),
    "its callers are cancelled while it is slow": lambda scene: meanwhile(scene.cancel_callers, 0.1),
    "the run is cancelled": lambda scene: meanwhile(scene.cancel_run),
    "the run is cancelled while it is slow": lambda scene: meanwhile(scene.cancel_run, 0.1),
    "the Supervisor is stopped": lambda scene: meanwhile(scene.stop_soon),
}
LOCKS = {"the file is busy", "a table is locked"}
"""What is waited for, and no caller hears of."""
ONCE_COMMITTED = "its answer gets lost once it is committed"
KINDS: dict[str, Kind] = {**ANYWHERE, ONCE_COMMITTED: lambda _: raising("SQLITE_IOERR", done=True)}


@pytest.fixture(autouse=True)
def nothing_critical(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What ends a loop for good is logged as critical; the rest of the log is not worth its time here."""
    caplog.set_level(logging.CRITICAL, "jobs_async")
    yield
    assert not caplog.records


@pytest.fixture
def folder(memory_folder: Path) -> Path:
    return Path(mkdtemp(dir=memory_folder))


@pytest.fixture(autouse=True)
async def nothing_left() -> Any:
    """No task, no thread, no complaint of the event loop."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    tasks, before = asyncio.all_tasks(), threads()
    with watched():
        yield

    def left() -> set[Any]:
        return (threads() - before) | (asyncio.all_tasks() - tasks - {asyncio.current_task()})

    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while left():
                await asyncio.sleep(0.01)
    assert not left()
    assert not complaints


DUMP = "SELECT json_extract(args, '$'), state, coalesce(errors, '') LIKE '%SettlementRefused%' FROM jobs_async_jobs"


class FilePlace:
    """A file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def store(self) -> SqliteStore:
        return SqliteStore(self._path)

    async def rows(self) -> list[Row]:
        return [Row(key, JobState(state), bool(refused)) for key, state, refused in ask(self._path, DUMP)]

    async def is_free(self) -> bool:
        return can_be_written_at_once(self._path)

    async def wrongs(self) -> list[str]:
        wrong = [] if ask(self._path, "PRAGMA integrity_check") == [("ok",)] else ["the file is damaged"]
        return wrong + [f"still open: {file}" for file in open_files(self._path)]


async def sweep_files(folder: Path, every: int) -> int:
    """Play a scene for every statement and each fault that it can meet, or for every so many of these; how many."""
    numbers = count()

    @asynccontextmanager
    async def places() -> AsyncGenerator[FilePlace]:
        path = folder / f"{next(numbers)}.db"
        yield FilePlace(path)
        path.unlink()

    def look(name: str, scene: Scene) -> Iterator[str]:
        target = scene.statements.target
        if target is not None and target.name == "BEGIN IMMEDIATE" and name in LOCKS:
            yield from map(repr, scene.errors)

    found = await quiet(places, SQL.keys() - UNUSED)
    visits: list[Visit] = [(name, each) for name in ANYWHERE for each in found]
    visits += [(ONCE_COMMITTED, each) for each in found if each.name in AUTOCOMMIT]
    return await sweep(places, visits[::every], KINDS, side_by_side=SIDE_BY_SIDE, look=look)


async def test_f12_rows_54_55_69_and_70_whatever_a_statement_meets_leaves_nothing_open_and_loses_nothing(
    folder: Path,
) -> None:
    await sweep_files(folder, every=17)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_f12_row_50_no_connection_is_spoiled_whatever_any_statement_meets(
    folder: Path, measured: Measured
) -> None:
    visited = await sweep_files(folder, every=1)
    load = f"{len(KINDS)} kinds of faults, each at every statement of a scene of 12 jobs"
    measured("F12, statements of SQLite", load, f"{visited} points, all visited; lost 0, open transactions 0")


@pytest.mark.parametrize("error", ["SQLITE_IOERR", "SQLITE_BUSY"])
async def test_row_55_a_rollback_that_fails_leaves_no_transaction_open(path: Path, error: str) -> None:
    statements = Statements(Statement("play", "ROLLBACK", 1), raising(error))
    current.set(statements)
    async with SqliteStore(path) as store:
        await store.insert([new(unique_key="k")])
        with pytest.raises(UniqueConflict):
            await store.insert([new(unique_key="k", unique_strategy=UniqueStrategy.REJECT)])
        assert statements.struck.is_set()
        await store.insert([new("later")])
        assert ask(path, "SELECT count(*) FROM jobs_async_jobs WHERE worker = 'later'") == [(1,)]
        assert can_be_written_at_once(path)


async def test_row_54_jobs_that_shared_a_commit_whose_answer_got_lost_are_stored_once(path: Path) -> None:
    statements = Statements(Statement("play", "COMMIT", 1), raising("SQLITE_IOERR", done=True))
    statements.phase = "open"
    current.set(statements)
    async with SqliteStore(path) as store:
        statements.phase = "play"
        inserts = [asyncio.create_task(store.insert([new(f"w{n}")])) for n in range(5)]
        await asyncio.wait(inserts)
        assert statements.struck.is_set()
        answered = [task.result()[0].worker for task in inserts if task.exception() is None]
        stored = [job.worker for job in await store.select(JobQuery())]
        assert len(stored) == len(set(stored))
        assert set(answered) <= set(stored)
