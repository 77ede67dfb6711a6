"""Opening a file: the schema comes once, and what cannot be opened is a typed error that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from jobs_async.core.errors import OptionError, SchemaError, StoreBusy, StoreClosed, StoreError
from jobs_async.core.job import FINAL, ErrorRecord, JobState, Progress
from jobs_async.core.store import JobQuery
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.sql import migrations
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import PATIENCE, ask, change, done, new, open_files, running, threads, until

NOBODY = 65534
PACKAGE = "jobs_async.stores.sqlite"
APPLIED = [(version,) for version, _ in migrations(PACKAGE)]
"""What the table of migrations holds in a file that is up to date."""


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


async def test_eight_tasks_and_four_processes_that_open_a_fresh_file_at_once_create_the_schema_once(path: Path) -> None:
    stores = [SqliteStore(path) for _ in range(8)]
    with ExitStack() as stack:
        others = [stack.enter_context(running("opening", path, stdin=subprocess.PIPE)) for _ in range(4)]
        assert [says(process) for process in others] == ["ready"] * 4
        for process in others:
            tell(process)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(store.open() for store in stores))
            await asyncio.gather(*(store.insert([new()]) for store in stores))
            assert [await asyncio.to_thread(says, process) for process in others] == ["stored"] * 4
            assert await stores[0].tally() == {("default", JobState.available): 12}
            await asyncio.gather(*(store.close() for store in stores))
    assert ask(path, "SELECT version FROM jobs_async_migrations") == APPLIED
    assert ask(path, "PRAGMA journal_mode") == [("wal",)]


async def test_a_file_opened_again_keeps_its_jobs_and_its_schema(path: Path) -> None:
    for count in range(1, 4):
        async with SqliteStore(path) as store:
            await store.insert([new()])
            assert await store.tally() == {("default", JobState.available): count}
    assert ask(path, "SELECT version FROM jobs_async_migrations") == APPLIED


OLD_COLUMNS = """
    id, state, queue, worker, args, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
    completed_at, rescues, claim, node, timeout_seconds, cancel_requested, progress, result, errors,
    unique_key, idempotency_key, correlation_id, tags, meta
"""


def first_version(path: Path) -> None:
    """A file as the first version left it: a job in every state, with every column in use, and all else it kept."""
    [(version, script), *_] = migrations(PACKAGE)
    assert version == 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(script)
        connection.execute(
            "CREATE TABLE jobs_async_migrations (version INTEGER NOT NULL PRIMARY KEY, applied_at TEXT NOT NULL) STRICT"
        )
        connection.execute("INSERT INTO jobs_async_migrations VALUES (1, datetime('now'))")
        for state in JobState:
            connection.execute(
                f"INSERT INTO jobs_async_jobs ({OLD_COLUMNS}) VALUES ({', '.join('?' * 25)})", old_row(state)
            )
        connection.execute("INSERT INTO jobs_async_queues VALUES ('paused', 1, 3)")
        connection.execute("INSERT INTO jobs_async_ticks VALUES ('nightly', 1, 10)")
        connection.commit()


def old_row(state: JobState) -> tuple[object, ...]:
    return (
        *(int(state) + 10, int(state), "default", "work", '{"a":1}', -5, 2, 7),
        *(1_000_000, 2_000_000, 3_000_000, 4_000_000 if state in FINAL else None),
        *(1, 3, "node", 12.5, 0, '{"fraction":0.5,"note":"half"}', '{"b":2}' if state is JobState.completed else None),
        *('[{"attempt":1,"type":"E","error":"E: boom"}]', f"u{state:d}", f"i{state:d}", "c", '["t"]', '{"m":1}'),
    )


def dated(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def test_a_file_of_the_first_version_is_brought_up_to_date_and_keeps_what_it_held(path: Path) -> None:
    first_version(path)
    before = ask(path, f"SELECT {OLD_COLUMNS} FROM jobs_async_jobs")
    async with SqliteStore(path) as store:
        jobs = {job.state: job for job in await store.select(JobQuery())}
        queues = await store.queues()
        [added] = await store.insert([new(external_id="order 7")])
        assert await store.select(JobQuery(external_id="order 7")) == [added]
    assert ask(path, "SELECT version FROM jobs_async_migrations") == APPLIED
    assert ask(path, f"SELECT {OLD_COLUMNS} FROM jobs_async_jobs WHERE id <> ?", added.id) == before
    assert ask(path, "SELECT name, at, job_id FROM jobs_async_ticks") == [("nightly", 1, 10)]
    assert (queues["paused"].paused, queues["paused"].limit) == (True, 3)
    assert jobs.keys() == set(JobState)
    for state, job in jobs.items():
        assert (job.id, job.external_id, job.args, job.meta, job.tags) == (state + 10, None, {"a": 1}, {"m": 1}, ("t",))
        assert (job.scheduled_at, job.inserted_at, job.attempted_at) == (dated(1), dated(2), dated(3))
        assert job.completed_at == (dated(4) if state in FINAL else None)
        assert (job.progress, job.errors) == (
            Progress(0.5, "half"),
            (ErrorRecord(attempt=1, type="E", error="E: boom"),),
        )
        assert (job.unique_key, job.idempotency_key, job.correlation_id) == (f"u{state:d}", f"i{state:d}", "c")
    assert jobs[JobState.completed].result == {"b": 2}


async def test_jobs_of_the_first_version_are_run_and_settled(path: Path) -> None:
    first_version(path)
    async with SqliteStore(path) as store:
        jobs = (await store.fetch("default", 10, node=None)).jobs
        assert {job.id - 10 for job in jobs} == {JobState.available, JobState.scheduled, JobState.retryable}
        assert all(await store.apply([done(job) for job in jobs]))
        [twin] = await store.insert([new(unique_key=f"u{JobState.executing:d}")])
        assert (twin.duplicate, twin.id - 10) == (True, JobState.executing)
    async with SqliteStore(path) as store:
        assert await store.tally() == {
            ("default", JobState.completed): 4,
            ("default", JobState.executing): 1,
            ("default", JobState.discarded): 1,
            ("default", JobState.cancelled): 1,
        }


def schema(path: Path) -> list[tuple[object, ...]]:
    return ask(path, "SELECT type, name, tbl_name FROM sqlite_schema WHERE name LIKE 'jobs_async_%' ORDER BY name")


async def test_a_file_brought_up_to_date_and_a_fresh_one_are_alike(path: Path) -> None:
    first_version(path)
    fresh = path.with_name("fresh.db")
    for file in (path, fresh):
        async with SqliteStore(file):
            pass
    assert schema(path) == schema(fresh)
    for table in [name for kind, name, _ in schema(fresh) if kind == "table"]:
        columns = "SELECT * FROM pragma_table_info(?)"
        assert ask(path, columns, table) == ask(fresh, columns, table), table


async def test_the_tables_of_an_application_live_beside_the_jobs(path: Path) -> None:
    change(path, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    async with SqliteStore(path) as store:
        await store.insert([new()])
    change(path, "INSERT INTO orders DEFAULT VALUES")
    tables = [name for (name,) in ask(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")]
    assert [name for name in tables if not name.startswith(("jobs_async_", "sqlite_"))] == ["orders"]


async def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.insert([new()])
    change(path, "INSERT INTO jobs_async_migrations VALUES (1000, datetime('now'))")
    before = ask(path, "SELECT * FROM jobs_async_migrations"), ask(path, "SELECT * FROM sqlite_schema")
    store = SqliteStore(path)
    with pytest.raises(SchemaError, match="1000"):
        await store.open()
    assert not store.is_open
    with pytest.raises(StoreClosed):
        await store.insert([new()])
    assert (ask(path, "SELECT * FROM jobs_async_migrations"), ask(path, "SELECT * FROM sqlite_schema")) == before
    with pytest.raises(SchemaError):
        await Supervisor(f"sqlite:///{path}").start()


@pytest.mark.parametrize("content", [b"this is no database, " * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_a_store_error_that_names_it_and_is_left_as_it_is(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=path.name):
        await SqliteStore(path).open()
    assert path.read_bytes() == content


async def test_a_missing_folder_is_a_store_error_that_names_the_path_and_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "jobs.db"
    with pytest.raises(StoreError, match="missing"):
        await SqliteStore(path).open()
    assert not path.parent.exists()


async def test_a_folder_in_the_place_of_the_file_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=tmp_path.name):
        await SqliteStore(tmp_path).open()


async def test_a_supervisor_over_a_file_that_cannot_be_opened_starts_nothing(tmp_path: Path) -> None:
    jobs = Supervisor(f"sqlite:///{tmp_path}/missing/jobs.db")
    before = asyncio.all_tasks()
    with pytest.raises(StoreError):
        await jobs.start()
    with pytest.raises(StoreError):
        await jobs.enqueue("work")
    assert not jobs.is_running
    assert asyncio.all_tasks() == before
    (tmp_path / "missing").mkdir()
    async with asyncio.timeout(PATIENCE), jobs:
        assert (await jobs.enqueue("work")).id == 1


@pytest.mark.parametrize("obstacle", ["folder", "garbage", "schema"])
async def test_a_failed_opening_leaves_no_thread_and_no_file_open_and_can_be_repeated(
    path: Path, obstacle: str
) -> None:
    before = threads()
    other = path.with_name("sub") / "jobs.db"
    path = other if obstacle == "folder" else path
    if obstacle == "garbage":
        path.write_bytes(b"x" * 5000)
    if obstacle == "schema":
        async with SqliteStore(path):
            pass
        change(path, "INSERT INTO jobs_async_migrations VALUES (1000, '')")
    store = SqliteStore(path)
    for _ in range(3):
        with pytest.raises(StoreError):
            await store.open()

    async def nothing_left() -> bool:
        return threads() <= before and not open_files(path)

    await until(nothing_left, 5)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    async with store:
        await store.insert([new()])


def test_a_failed_opening_is_over_when_it_is_told_so_that_the_loop_may_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    (tmp_path / "garbage.db").write_bytes(b"x" * 5000)
    before = threads()
    for _ in range(50):
        for path in (tmp_path / "missing" / "jobs.db", tmp_path, tmp_path / "garbage.db"):
            with pytest.raises(StoreError):
                asyncio.run(SqliteStore(path).open())
    for thread in threads() - before:
        thread.join(PATIENCE)
    assert complaints == []


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that another user may look into."""
    folder = Path(mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    rmtree(folder)


@pytest.mark.parametrize("what", ["folder", "fresh folder", "file"])
async def test_what_may_not_be_written_is_a_store_error(shared_folder: Path, what: str) -> None:
    path = shared_folder / "jobs.db"
    if what != "fresh folder":
        async with SqliteStore(path):
            pass
    if what == "file":
        shared_folder.chmod(0o777)
    path.touch()
    path.chmod(0o444)
    if what == "fresh folder":
        path.unlink()
    if what != "file":
        shared_folder.chmod(0o555)
    user = [NOBODY] if os.getuid() == 0 else []
    with running("opening", path, *user, stdin=subprocess.PIPE) as process:
        assert says(process) == "ready"
        tell(process)
        answer = await asyncio.to_thread(says, process)
    assert answer.startswith("StoreError ")
    assert str(path) in answer or "readonly" in answer


@pytest.mark.parametrize("path", ["", ":memory:", "file::memory:?cache=shared", "file:jobs?mode=memory"])
def test_a_database_in_memory_is_refused_with_advice(path: str) -> None:
    with pytest.raises(OptionError, match="MemoryStore"):
        SqliteStore(path)


@pytest.mark.parametrize("name", ["with space.db", "50%.db", "a?b#c.db", "naïve 漢字.db", "'quoted\".db", "-dash.db"])
async def test_any_name_of_a_file_is_a_name_of_a_file(tmp_path: Path, name: str) -> None:
    async with SqliteStore(tmp_path / name) as store:
        await store.insert([new()])
    assert ask(tmp_path / name, "SELECT count(*) FROM jobs_async_jobs") == [(1,)]


async def test_every_commit_is_synced_in_a_log_of_bounded_size(store: SqliteStore, path: Path) -> None:
    """The one look inside: what the settings of the writing connection are cannot be seen from anywhere else."""
    connection = store._write_connection
    assert connection is not None
    settings = [await connection.execute_fetchall(f"PRAGMA {name}") for name in ("synchronous", "journal_mode")]
    assert [next(iter(rows))[0] for rows in settings] == [2, "wal"]


async def test_a_file_whose_schema_is_there_opens_beside_a_transaction_and_another_says_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStore(path) as store:
        job = await store.enqueue("work")
    with closing(sqlite3.connect(path, isolation_level=None)) as mine:
        mine.execute("BEGIN IMMEDIATE")
        async with SqliteStore(path) as store:
            assert (await store.get(job.id)).worker == "work"
        mine.execute("DELETE FROM jobs_async_migrations WHERE version > 1")
        mine.execute("COMMIT")
        mine.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr("jobs_async.stores.sqlite.file.PATIENCE", 0.1)
        with pytest.raises(StoreBusy, match="open the Supervisor before you begin a transaction"):
            await SqliteStore(path).open()
