"""`connection=`: an enqueue that shares the fate of the application's own transaction."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from jobs_async.core.errors import JobsError, OptionError, SchemaError, StoreBusy, StoreError, UniqueConflict
from jobs_async.core.events import Event, JobDuplicate, JobEnqueued
from jobs_async.core.job import JobState
from jobs_async.core.options import Draft, JobOpts, UniqueStrategy
from jobs_async.core.store import JobQuery
from jobs_async.core.workers import worker
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.telemetry import Telemetry
from tests.applications import SQLALCHEMY, Application, engine_of, on_session
from tests.sqlite.support import PATIENCE, Holder, ask, change, until

Connect = Callable[..., AbstractAsyncContextManager[aiosqlite.Connection]]
Begin = Callable[[aiosqlite.Connection], Awaitable[object]]


def as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


FACTORIES = {"tuples": None, "rows": aiosqlite.Row, "dicts": as_dict}
ISOLATIONS: dict[str, dict[str, Any]] = {"default isolation": {}, "autocommit": {"isolation_level": None}}


@asynccontextmanager
async def application(path: str | Path, factory: Any = None, **options: Any) -> AsyncIterator[aiosqlite.Connection]:
    async with aiosqlite.connect(path, **options) as connection:
        connection.row_factory = factory
        yield connection


@pytest.fixture
async def jobs(store: SqliteStore, path: Path) -> Supervisor:
    change(path, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    return Supervisor(store, queues={})


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest) -> Any:
    return FACTORIES[request.param]


@pytest.fixture(params=ISOLATIONS)
def connect(request: pytest.FixtureRequest, factory: Any, path: Path) -> Connect:
    return partial(application, path, factory, **ISOLATIONS[request.param])


async def order(connection: aiosqlite.Connection) -> None:
    """What applications do: begin where the driver does not, then write something of their own."""
    if connection.isolation_level is None:
        await connection.execute("BEGIN")
    await connection.execute("INSERT INTO orders DEFAULT VALUES")


def stored(path: Path) -> tuple[int, int]:
    """How many orders and jobs a stranger sees."""
    ((orders, jobs),) = ask(path, "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM jobs_async_jobs)")
    return orders, jobs


async def test_a_commit_stores_the_job_with_the_applications_own_rows(
    jobs: Supervisor, connect: Connect, path: Path
) -> None:
    async with connect() as connection:
        await order(connection)
        job = await jobs.enqueue("mail", {"order": 1}, priority=-3, tags=["a"], connection=connection)
        assert connection.in_transaction
        assert stored(path) == (0, 0)
        await connection.commit()
        assert stored(path) == (1, 1)
    assert await jobs.get(job.id) == job
    [claimed] = (await jobs.store.fetch("default", 1, node=None)).jobs
    assert (claimed.id, claimed.args) == (job.id, {"order": 1})


async def test_a_rollback_leaves_nothing(jobs: Supervisor, connect: Connect, path: Path) -> None:
    async with connect() as connection:
        await order(connection)
        await jobs.enqueue_many([Draft("mail"), Draft("mail", None, JobOpts(unique_key="k"))], connection=connection)
        await connection.rollback()
        assert not connection.in_transaction
    assert stored(path) == (0, 0)
    assert (await jobs.enqueue("mail", unique_key="k")).duplicate is False


async def test_an_enqueue_may_be_the_first_statement_of_the_transaction(
    jobs: Supervisor, factory: Any, path: Path
) -> None:
    async with application(path, factory) as connection:
        await jobs.enqueue("mail", unique_key="k", connection=connection)
        assert connection.in_transaction
        await connection.execute("INSERT INTO orders DEFAULT VALUES")
        await connection.rollback()
        assert stored(path) == (0, 0)
        await jobs.enqueue("mail", unique_key="k", connection=connection)
        await connection.execute("INSERT INTO orders DEFAULT VALUES")
        await connection.commit()
    assert stored(path) == (1, 1)


async def test_without_a_transaction_in_autocommit_the_job_is_stored_at_once(
    jobs: Supervisor, factory: Any, path: Path
) -> None:
    async with application(path, factory, isolation_level=None) as connection:
        job = await jobs.enqueue("mail", unique_key="k", connection=connection)
        assert not connection.in_transaction
        assert stored(path) == (0, 1)
    assert await jobs.get(job.id) == job


async def test_unique_keys_hold_inside_the_transaction(jobs: Supervisor, connect: Connect, path: Path) -> None:
    outside = await jobs.enqueue("mail", {"n": 0}, unique_key="outside")
    async with connect() as connection:
        await order(connection)
        enqueue = partial(jobs.enqueue, "mail", connection=connection)
        inside = await enqueue({"n": 1}, unique_key="inside")
        again = await enqueue({"n": 2}, unique_key="inside")
        met = await enqueue({"n": 3}, unique_key="outside")
        assert (again.id, again.duplicate, again.args) == (inside.id, True, {"n": 1})
        assert (met.id, met.duplicate, met.args) == (outside.id, True, {"n": 0})
        newer = await enqueue({"n": 4}, unique_key="outside", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
        assert (newer.duplicate, newer.replaces) == (False, outside.id)
        with pytest.raises(UniqueConflict) as conflict:
            await enqueue({"n": 5}, unique_key="inside", unique_strategy=UniqueStrategy.REJECT)
        assert conflict.value.job.id == inside.id
        assert (await jobs.get(outside.id)).state is JobState.available
        await connection.commit()
    assert stored(path) == (1, 3)
    assert (await jobs.get(outside.id)).state is JobState.cancelled
    assert (await jobs.get(newer.id)).args == {"n": 4}


async def test_idempotency_keys_hold_inside_the_transaction(jobs: Supervisor, connect: Connect, path: Path) -> None:
    before = await jobs.enqueue("mail", idempotency_key="before")
    async with connect() as connection:
        await order(connection)
        enqueue = partial(jobs.enqueue, connection=connection)
        assert (await enqueue("mail", idempotency_key="before")).id == before.id
        first = await enqueue("mail", idempotency_key="k")
        again = await enqueue("mail", idempotency_key="k")
        other = await enqueue("other", idempotency_key="k")
        assert (again.id, again.duplicate, other.duplicate) == (first.id, True, False)
        await connection.commit()
    assert stored(path) == (1, 3)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_refused_batch_leaves_nothing_of_it_in_a_transaction_that_is_then_committed(
    jobs: Supervisor, path: Path, isolation: str
) -> None:
    held = await jobs.enqueue("mail", unique_key="held")
    reject, cancel = UniqueStrategy.REJECT, UniqueStrategy.CANCEL_EXISTING
    batch = [
        Draft("plain"),
        Draft("mail", None, JobOpts(unique_key="fresh")),
        Draft("mail", None, JobOpts(unique_key="held", unique_strategy=cancel)),
        Draft("mail", None, JobOpts(unique_key="fresh", unique_strategy=reject)),
    ]
    async with application(path, **ISOLATIONS[isolation]) as connection:
        await order(connection)
        with pytest.raises(UniqueConflict):
            await jobs.enqueue_many(batch, connection=connection)
        assert connection.in_transaction
        await connection.commit()
    assert stored(path) == (1, 1)
    assert await jobs.get(held.id) == held


async def test_a_refused_batch_leaves_nothing_where_no_transaction_is_open(jobs: Supervisor, path: Path) -> None:
    batch = [
        Draft("mail", None, JobOpts(unique_key="fresh")),
        Draft("mail", None, JobOpts(unique_key="fresh", unique_strategy=UniqueStrategy.REJECT)),
    ]
    async with application(path, isolation_level=None) as connection:
        with pytest.raises(UniqueConflict):
            await jobs.enqueue_many(batch, connection=connection)
        assert not connection.in_transaction
    assert stored(path) == (0, 0)


async def test_the_options_of_a_worker_carry_the_connection(store: SqliteStore, path: Path) -> None:
    @worker
    async def mail(to: str) -> None: ...

    jobs = Supervisor(store, queues={}, workers=[mail])
    change(path, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    async with application(path) as connection:
        await mail.on(jobs).options(connection=connection).enqueue("a@b.c")
        await connection.rollback()
        kept = await mail.on(jobs).options(connection=connection, priority=3).enqueue("d@e.f")
        await connection.commit()
    assert [(job.id, job.args) for job in await jobs.find(JobQuery())] == [(kept.id, {"to": "d@e.f"})]


async def test_the_event_says_that_the_transaction_may_still_be_rolled_back(store: SqliteStore, path: Path) -> None:
    told: list[Event] = []
    telemetry = Telemetry()
    telemetry.attach(told.append)
    jobs = Supervisor(store, queues={}, telemetry=telemetry)
    async with application(path) as connection:
        job = await jobs.enqueue("mail", unique_key="k", connection=connection)
        again = await jobs.enqueue("mail", unique_key="k", connection=connection)
        assert [(type(event), event.job) for event in told if isinstance(event, JobEnqueued | JobDuplicate)] == [
            (JobEnqueued, job),
            (JobDuplicate, again),
        ]
        assert [event.in_transaction for event in told if isinstance(event, JobEnqueued)] == [True]
        await connection.rollback()
    own = await jobs.enqueue("mail")
    assert told[2:] == [JobEnqueued(job=own, at=told[-1].at, in_transaction=False)]


async def test_nobody_is_nudged_by_a_transaction_that_is_not_committed_yet(store: SqliteStore, path: Path) -> None:
    ran: list[str] = []
    jobs = Supervisor(store, queues={"inside": 1, "marker": 1}, poll_interval=3600)

    @jobs.worker
    async def note(name: str) -> None:
        ran.append(name)

    async with asyncio.timeout(PATIENCE), jobs:
        await jobs.wait(await note.options(queue="inside").enqueue("warm"))
        await jobs.wait(await note.options(queue="marker").enqueue("warm"))
        async with application(path) as connection:
            quiet = await note.options(queue="inside", connection=connection).enqueue("quiet")
            await connection.commit()
        for turn in range(5):
            await jobs.wait(await note.options(queue="marker").enqueue(f"marker {turn}"))
        assert (await jobs.get(quiet.id)).state is JobState.available
        await jobs.wait(await note.options(queue="inside").enqueue("loud"))
        await jobs.wait(quiet)
    assert ran == ["warm", "warm", *(f"marker {turn}" for turn in range(5)), "quiet", "loud"]


async def test_a_committed_job_is_found_by_the_next_poll(store: SqliteStore, path: Path) -> None:
    jobs = Supervisor(store, poll_interval=0.02)

    @jobs.worker
    async def note() -> str:
        return "ran"

    async with asyncio.timeout(PATIENCE), jobs:
        async with application(path) as connection:
            job = await note.options(connection=connection).enqueue()
            await connection.commit()
        assert await jobs.result(job) == "ran"


@pytest.mark.parametrize("spelling", ["relative", "link", "uri"])
async def test_the_same_file_by_another_name_is_the_same_file(
    jobs: Supervisor, path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    folder = path.parent / "folder"
    os.symlink(path.parent, folder)
    name = {"relative": path.name, "link": str(folder / path.name), "uri": path.as_uri()}[spelling]
    async with application(name, uri=spelling == "uri") as connection:
        await jobs.enqueue("mail", connection=connection)
        await connection.commit()
    assert stored(path) == (0, 1)


@pytest.mark.parametrize("kind", ["object", "text", "sqlite3", "cursor"])
async def test_what_is_no_connection_of_aiosqlite_is_an_option_error_that_names_its_type(
    jobs: Supervisor, path: Path, kind: str
) -> None:
    with closing(sqlite3.connect(path)) as plain:
        async with application(path) as connection, connection.cursor() as cursor:
            given = {"object": object(), "text": str(path), "sqlite3": plain, "cursor": cursor}[kind]
            with pytest.raises(OptionError, match=type(given).__name__):
                await jobs.enqueue("mail", connection=given)
    assert stored(path) == (0, 0)


async def test_a_connection_to_a_file_without_jobs_is_a_store_error(jobs: Supervisor, tmp_path: Path) -> None:
    for name in (":memory:", tmp_path / "other.db"):
        async with application(name) as connection:
            with pytest.raises(StoreError):
                await jobs.enqueue("mail", connection=connection)


async def test_a_connection_to_another_file_of_jobs_is_refused_and_nothing_is_written_there(
    jobs: Supervisor, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    async with SqliteStore(elsewhere) as other, application(elsewhere) as connection:
        with pytest.raises(JobsError):
            await jobs.enqueue("mail", connection=connection)
        await connection.commit()
        assert await other.tally() == {}


async def test_a_closed_connection_is_a_typed_error(jobs: Supervisor, path: Path) -> None:
    async with application(path) as connection:
        pass
    with pytest.raises(JobsError):
        await jobs.enqueue("mail", connection=connection)
    assert stored(path) == (0, 0)


async def test_a_foreign_lock_is_store_busy_and_the_transaction_can_go_on_after_it(
    jobs: Supervisor, connect: Connect, path: Path
) -> None:
    async with connect(timeout=0) as connection:
        if connection.isolation_level is None:
            await connection.execute("BEGIN")
        with Holder(path):
            with pytest.raises(StoreBusy, match="IMMEDIATE"):
                await jobs.enqueue("mail", connection=connection)
            with pytest.raises(StoreBusy, match="IMMEDIATE"):
                await jobs.enqueue("mail", unique_key="k", connection=connection)
        await connection.rollback()
        await jobs.enqueue("mail", unique_key="k", connection=connection)
        await connection.commit()
    assert stored(path)[1] == 1


async def test_row_71_a_transaction_that_has_read_before_another_wrote_is_store_busy(
    jobs: Supervisor, path: Path
) -> None:
    async with application(path, isolation_level=None) as connection:
        await connection.execute("BEGIN")
        await connection.execute_fetchall("SELECT count(*) FROM orders")
        await jobs.enqueue("mail")
        with pytest.raises(StoreBusy, match="IMMEDIATE"):
            await jobs.enqueue("mail", connection=connection)
        await connection.rollback()
    assert stored(path) == (0, 1)


async def test_a_key_that_another_process_takes_between_look_and_write_is_no_raw_database_error(
    jobs: Supervisor, path: Path
) -> None:
    """Where the driver begins the transaction only at the first write, another may come in between."""
    rival = asyncio.run_coroutine_threadsafe
    loop, taken = asyncio.get_running_loop(), list[str]()

    def take(statement: str) -> None:
        if statement.startswith(("BEGIN", "SAVEPOINT", "INSERT")) and not taken:
            taken.append(statement)
            rival(jobs.enqueue("mail", unique_key="k"), loop).result(PATIENCE)

    async with application(path) as connection:
        await connection.set_trace_callback(take)
        try:
            job = await jobs.enqueue("mail", unique_key="k", connection=connection)
        except JobsError:
            pass
        else:
            assert job.duplicate
        await connection.rollback()
    assert taken
    assert stored(path) == (0, 1)


async def test_one_connection_may_serve_concurrent_enqueues(jobs: Supervisor, path: Path) -> None:
    async with application(path) as connection:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(jobs.enqueue("mail", unique_key=f"k{number % 10}", connection=connection))
        await connection.commit()
    assert stored(path) == (0, 10)


async def test_another_process_sees_the_commit_at_its_next_fetch(jobs: Supervisor, path: Path) -> None:
    async with SqliteStore(path) as other, application(path) as connection:
        assert (await other.fetch("default", 1, node=None)).jobs == []
        job = await jobs.enqueue("mail", connection=connection)
        assert (await other.fetch("default", 1, node=None)).jobs == []
        await connection.commit()

        async def fetched() -> list[int]:
            return [job.id for job in (await other.fetch("default", 1, node=None)).jobs]

        assert await until(fetched) == [job.id]


async def test_the_memory_store_says_that_it_has_no_transactions() -> None:
    jobs = Supervisor(MemoryStore(), queues={})
    with pytest.raises(OptionError, match="connection="):
        await jobs.enqueue("mail", connection=object())
    assert await jobs.store.tally() == {}


# --- through SQLAlchemy ---


@pytest.fixture(params=SQLALCHEMY)
async def alchemy(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Application]:
    async with SQLALCHEMY[request.param](f"sqlite+aiosqlite:///{path}") as app:
        yield app


async def place_order(app: Application) -> None:
    await app.execute("INSERT INTO orders DEFAULT VALUES")


@pytest.mark.parametrize("enqueue_first", [True, False])
async def test_sqlalchemys_commit_and_rollback_decide_for_the_job(
    jobs: Supervisor, alchemy: Application, path: Path, enqueue_first: bool
) -> None:
    for end in (alchemy.rollback, alchemy.commit):
        if not enqueue_first:
            await place_order(alchemy)
        job = await jobs.enqueue("mail", {"n": 1}, unique_key="k", connection=alchemy.given)
        if enqueue_first:
            await place_order(alchemy)
        assert not job.duplicate
        assert stored(path) == (0, 0)
        await end()
    assert stored(path) == (1, 1)
    assert await jobs.get(job.id) == job


async def test_a_refused_batch_leaves_the_transaction_of_sqlalchemy_usable(
    jobs: Supervisor, alchemy: Application, path: Path
) -> None:
    await place_order(alchemy)
    first = await jobs.enqueue("mail", unique_key="k", connection=alchemy.given)
    assert (await jobs.enqueue("mail", unique_key="k", connection=alchemy.given)).id == first.id
    batch = [Draft("plain"), Draft("mail", None, JobOpts(unique_key="k", unique_strategy=UniqueStrategy.REJECT))]
    with pytest.raises(UniqueConflict):
        await jobs.enqueue_many(batch, connection=alchemy.given)
    await alchemy.commit()
    assert stored(path) == (1, 1)


async def test_a_session_of_sqlalchemy_may_serve_concurrent_enqueues(jobs: Supervisor, path: Path) -> None:
    async with on_session(f"sqlite+aiosqlite:///{path}") as app:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(jobs.enqueue("mail", unique_key=f"k{number % 10}", connection=app.given))
        await app.commit()
    assert stored(path) == (0, 10)


async def test_a_connection_of_sqlalchemy_that_is_closed_or_leads_elsewhere_is_refused(
    jobs: Supervisor, path: Path, tmp_path: Path
) -> None:
    async with engine_of(f"sqlite+aiosqlite:///{path}") as engine:
        closed = await engine.connect()
        await closed.close()
        for connection in (closed, engine.connect(), engine):
            with pytest.raises(OptionError, match="connection="):
                await jobs.enqueue("mail", connection=connection)
    async with engine_of(f"sqlite+aiosqlite:///{tmp_path}/other.db") as engine, engine.connect() as elsewhere:
        with pytest.raises(SchemaError, match="another database"):
            await jobs.enqueue("mail", connection=elsewhere)
    assert stored(path) == (0, 0)
