"""`connection=`: an enqueue that shares the fate of the application's own transaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import aiosqlite
import asyncpg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jobs_async import Supervisor, Telemetry, worker
from jobs_async.core.errors import OptionError, StoreBusy, StoreError, UniqueConflict, WriteRefused
from jobs_async.core.events import Event, JobDuplicate, JobEnqueued
from jobs_async.core.job import JobState
from jobs_async.core.options import Draft, JobOpts, NewJob, UniqueStrategy
from jobs_async.core.store import JobQuery
from jobs_async.stores.postgres import PostgresStore
from tests.applications import POSTGRES, SQLALCHEMY, Application, Open, engine_of, on_asyncpg, on_session
from tests.cluster import PgServer
from tests.postgres.fleet import ON_HINTS, all_ears, supervisor, words
from tests.postgres.support import PATIENCE, TABLES, ask, connected, until

REJECT, CANCEL = UniqueStrategy.REJECT, UniqueStrategy.CANCEL_EXISTING
EMPTY = "; ".join(f"DELETE FROM {table}" for table in TABLES)


@pytest.fixture(scope="module")
def database(pg_cluster: PgServer) -> Iterator[str]:
    with pg_cluster.database() as dsn:
        yield dsn


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(database) as store:
        async with connected(database) as connection:
            await connection.execute(f"{EMPTY}; DROP TABLE IF EXISTS orders; CREATE TABLE orders (id serial)")
        yield store


@pytest.fixture
def jobs(store: PostgresStore) -> Supervisor:
    return Supervisor(store, queues={})


@pytest.fixture(params=POSTGRES)
async def app(request: pytest.FixtureRequest, store: PostgresStore, database: str) -> AsyncIterator[Application]:
    async with POSTGRES[request.param](database) as app:
        await app.begin()
        yield app


@pytest.fixture(params=[on_asyncpg, on_session], ids=["asyncpg", "AsyncSession"])
async def either(request: pytest.FixtureRequest, store: PostgresStore, database: str) -> AsyncIterator[Application]:
    async with request.param(database) as app:
        await app.begin()
        yield app


async def order(app: Application) -> None:
    await app.execute("INSERT INTO orders DEFAULT VALUES")


async def stored(dsn: str) -> tuple[Any, ...]:
    """How many orders and jobs a stranger sees."""
    (counts,) = await ask(dsn, "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM jobs_async_jobs)")
    return counts


async def waiting(dsn: str, count: int = 1) -> None:
    """Until so many connections wait for a lock."""

    async def wait() -> bool:
        locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ((waits,),) = await ask(dsn, locked)
        return bool(waits >= count)

    await until(wait)


# ------------------------------------------------------------------------------------------------ commit and rollback


@pytest.mark.parametrize("enqueue_first", [True, False])
async def test_a_commit_stores_the_job_with_the_applications_own_rows(
    jobs: Supervisor, app: Application, database: str, enqueue_first: bool
) -> None:
    if not enqueue_first:
        await order(app)
    job = await jobs.enqueue("mail", {"order": 1}, priority=-3, tags=["a"], connection=app.given)
    if enqueue_first:
        await order(app)
    assert await stored(database) == (0, 0)
    await app.commit()
    assert await stored(database) == (1, 1)
    assert await jobs.get(job.id) == job
    [claimed] = (await jobs.store.fetch("default", 1, node=None)).jobs
    assert (claimed.id, claimed.args) == (job.id, {"order": 1})


@pytest.mark.parametrize("enqueue_first", [True, False])
async def test_a_rollback_leaves_nothing(
    jobs: Supervisor, app: Application, database: str, enqueue_first: bool
) -> None:
    if not enqueue_first:
        await order(app)
    await jobs.enqueue_many([Draft("mail"), Draft("mail", None, JobOpts(unique_key="k"))], connection=app.given)
    if enqueue_first:
        await order(app)
    await app.rollback()
    assert await stored(database) == (0, 0)
    assert (await jobs.enqueue("mail", unique_key="k")).duplicate is False


async def test_what_is_done_since_a_savepoint_goes_with_it(
    jobs: Supervisor, either: Application, database: str
) -> None:
    kept = await jobs.enqueue("mail", unique_key="kept", connection=either.given)
    await either.execute("SAVEPOINT here")
    await jobs.enqueue("mail", unique_key="gone", connection=either.given)
    await order(either)
    await either.execute("ROLLBACK TO here")
    again = await jobs.enqueue("mail", unique_key="gone", connection=either.given)
    await either.commit()
    assert await stored(database) == (0, 2)
    assert {job.id for job in await jobs.find(JobQuery())} == {kept.id, again.id}


async def test_nested_transactions_of_sqlalchemy_and_asyncpg_are_such_savepoints(
    jobs: Supervisor, store: PostgresStore, database: str
) -> None:
    async with engine_of(database) as engine, AsyncSession(engine) as session:
        await jobs.enqueue("outer", connection=session)
        nested = await session.begin_nested()
        await jobs.enqueue("inner", connection=session)
        await nested.rollback()
        await session.commit()
    async with connected(database) as connection, connection.transaction():
        await jobs.enqueue("outer", connection=connection)
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await jobs.enqueue("inner", connection=connection)
                raise ZeroDivisionError
    assert [job.worker for job in await jobs.find(JobQuery())] == ["outer", "outer"]


@pytest.mark.parametrize("isolation", ["asyncpg", "sqlalchemy"])
async def test_without_a_transaction_the_job_is_stored_at_once(jobs: Supervisor, database: str, isolation: str) -> None:
    if isolation == "asyncpg":
        async with connected(database) as connection:
            await jobs.enqueue("mail", unique_key="k", connection=connection)
            assert not connection.is_in_transaction()
    else:
        async with engine_of(database, isolation_level="AUTOCOMMIT") as engine, engine.connect() as connection:
            await jobs.enqueue("mail", unique_key="k", connection=connection)
            await connection.rollback()
    assert await stored(database) == (0, 1)


async def test_the_options_of_a_worker_carry_the_connection(store: PostgresStore, database: str) -> None:
    @worker
    async def mail(to: str) -> None: ...

    jobs = Supervisor(store, queues={}, workers=[mail])
    async with on_session(database) as app:
        await mail.on(jobs).options(connection=app.given).enqueue("a@b.c")
        await app.rollback()
        kept = await mail.on(jobs).options(connection=app.given, priority=3).enqueue("d@e.f")
        await app.commit()
    assert [(job.id, job.args) for job in await jobs.find(JobQuery())] == [(kept.id, {"to": "d@e.f"})]


# --------------------------------------------------------------------------------------------------------------- keys


async def test_keys_hold_inside_the_transaction(jobs: Supervisor, either: Application, database: str) -> None:
    outside = await jobs.enqueue("mail", {"n": 0}, unique_key="outside", idempotency_key="once")
    enqueue = partial(jobs.enqueue, "mail", connection=either.given)
    inside = await enqueue({"n": 1}, unique_key="inside")
    again = await enqueue({"n": 2}, unique_key="inside")
    met = await enqueue({"n": 3}, unique_key="outside")
    same = await enqueue({"n": 4}, idempotency_key="once")
    assert (again.id, again.duplicate, again.args) == (inside.id, True, {"n": 1})
    assert (met.id, met.duplicate, met.args) == (outside.id, True, {"n": 0})
    assert (same.id, same.duplicate, same.args) == (outside.id, True, {"n": 0})
    newer = await enqueue({"n": 5}, unique_key="outside", unique_strategy=CANCEL)
    assert (newer.duplicate, newer.replaces) == (False, outside.id)
    with pytest.raises(UniqueConflict) as conflict:
        await enqueue({"n": 6}, unique_key="inside", unique_strategy=REJECT)
    assert conflict.value.job.id == inside.id
    assert (await jobs.get(outside.id)).state is JobState.available
    await either.commit()
    assert await stored(database) == (0, 3)
    assert (await jobs.get(outside.id)).state is JobState.cancelled
    assert (await jobs.get(newer.id)).args == {"n": 5}


KEYS: dict[str, dict[str, Any]] = {"unique": {"unique_key": "k"}, "idempotency": {"idempotency_key": "k"}}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("is_committed", [True, False])
async def test_the_second_who_takes_a_key_waits_for_what_becomes_of_the_first(
    jobs: Supervisor, database: str, key: str, is_committed: bool
) -> None:
    async with on_asyncpg(database) as first, on_session(database) as second:
        await first.begin()
        one = await jobs.enqueue("mail", **KEYS[key], connection=first.given)
        other = asyncio.create_task(jobs.enqueue("mail", **KEYS[key], connection=second.given))
        await waiting(database)
        assert not other.done()
        await (first.commit() if is_committed else first.rollback())
        async with asyncio.timeout(PATIENCE):
            two = await other
        await second.commit()
    assert two.duplicate is is_committed
    assert (two.id == one.id) is is_committed
    assert await stored(database) == (0, 1)


@pytest.mark.parametrize("strategy", [REJECT, CANCEL])
async def test_who_waited_rejects_or_replaces_what_the_first_has_committed(
    jobs: Supervisor, database: str, strategy: UniqueStrategy
) -> None:
    async with on_asyncpg(database) as first, on_session(database) as second:
        await first.begin()
        one = await jobs.enqueue("mail", unique_key="k", connection=first.given)
        enqueue = jobs.enqueue("mail", unique_key="k", unique_strategy=strategy, connection=second.given)
        other = asyncio.create_task(enqueue)
        await waiting(database)
        await first.commit()
        async with asyncio.timeout(PATIENCE):
            if strategy is REJECT:
                with pytest.raises(UniqueConflict):
                    await other
            else:
                assert (await other).replaces == one.id
        await second.commit()
    states = [job.state for job in await jobs.find(JobQuery(newest_first=False))]
    assert states == [JobState.available] if strategy is REJECT else [JobState.cancelled, JobState.available]


async def test_outside_of_a_transaction_a_key_that_is_held_for_too_long_is_store_busy(
    jobs: Supervisor, database: str
) -> None:
    async with on_asyncpg(database) as first:
        await first.begin()
        await jobs.enqueue("mail", unique_key="k", connection=first.given)
        with pytest.raises(StoreBusy):
            await jobs.enqueue("mail", unique_key="k")
        assert (await jobs.enqueue("mail", unique_key="other")).duplicate is False
        await first.rollback()
    assert (await jobs.enqueue("mail", unique_key="k")).duplicate is False


async def test_a_connection_waits_for_a_key_as_long_as_its_own_lock_timeout_says(
    jobs: Supervisor, database: str
) -> None:
    async with on_asyncpg(database) as first, on_session(database) as second:
        await first.begin()
        await jobs.enqueue("mail", unique_key="k", connection=first.given)
        await second.execute("SET LOCAL lock_timeout = '50ms'")
        await order(second)
        with pytest.raises(StoreBusy):
            await jobs.enqueue("mail", unique_key="k", connection=second.given)
        await jobs.enqueue("mail", connection=second.given)
        await second.commit()
    assert await stored(database) == (1, 1)


# ----------------------------------------------------------------------------------------------------------- refusals


async def test_a_refused_batch_leaves_nothing_of_it_in_a_transaction_that_is_then_committed(
    jobs: Supervisor, either: Application, database: str
) -> None:
    held = await jobs.enqueue("mail", unique_key="held")
    batch = [
        Draft("plain"),
        Draft("mail", None, JobOpts(unique_key="fresh")),
        Draft("mail", None, JobOpts(unique_key="held", unique_strategy=CANCEL)),
        Draft("mail", None, JobOpts(unique_key="fresh", unique_strategy=REJECT)),
    ]
    with pytest.raises(UniqueConflict):
        await jobs.enqueue_many(batch, connection=either.given)
    await order(either)
    await either.commit()
    assert await stored(database) == (1, 1)
    assert await jobs.get(held.id) == held


async def test_what_postgres_refuses_leaves_the_transaction_usable(
    jobs: Supervisor, store: PostgresStore, either: Application, database: str
) -> None:
    await order(either)
    with pytest.raises(WriteRefused):
        await store.insert([NewJob("mail", "no JSON")], connection=either.given)
    await jobs.enqueue("mail", connection=either.given)
    await either.commit()
    assert await stored(database) == (1, 1)


async def test_a_transaction_that_has_failed_is_a_store_error_and_can_be_rolled_back(
    jobs: Supervisor, either: Application, database: str
) -> None:
    with pytest.raises((asyncpg.PostgresError, SQLAlchemyError)):
        await either.execute("SELECT 1 / 0")
    with pytest.raises((StoreError, SQLAlchemyError, asyncpg.PostgresError)):
        await jobs.enqueue("mail", connection=either.given)
    await either.rollback()
    await either.begin()
    await jobs.enqueue("mail", connection=either.given)
    await either.commit()
    assert await stored(database) == (0, 1)


async def test_a_session_that_waits_for_its_rollback_says_so_itself(jobs: Supervisor, database: str) -> None:
    async with engine_of(database) as engine, AsyncSession(engine) as session:
        session.add(Order(id="no number"))
        with pytest.raises(SQLAlchemyError):
            await session.flush()
        with pytest.raises(PendingRollbackError):
            await jobs.enqueue("mail", connection=session)
        await session.rollback()
        await jobs.enqueue("mail", connection=session)
        await session.commit()
    assert await stored(database) == (0, 1)


@pytest.mark.parametrize("open_app", [on_asyncpg, on_session])
async def test_conflicts_between_transactions_reach_the_application_as_its_drivers(
    jobs: Supervisor, database: str, open_app: Open
) -> None:
    """For it alone can repeat the transaction."""
    old = await jobs.enqueue("mail", unique_key="k")
    async with open_app(database) as app:
        for expected in (asyncpg.SerializationError, asyncpg.UniqueViolationError):
            await app.begin()
            await app.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await app.execute("SELECT count(*) FROM orders")
            if expected is asyncpg.SerializationError:
                await jobs.edit(old.id, priority=5)
            else:
                await jobs.enqueue("mail", unique_key="k")
            with pytest.raises(expected):
                await jobs.enqueue("mail", unique_key="k", unique_strategy=CANCEL, connection=app.given)
            await app.rollback()
            if expected is asyncpg.SerializationError:
                await jobs.cancel(old.id)
        await app.begin()
        newer = await jobs.enqueue("mail", unique_key="k", unique_strategy=CANCEL, connection=app.given)
        await app.commit()
    assert (await jobs.get(newer.id)).state is JobState.available


# -------------------------------------------------------------------------------------------- what is no connection


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


AsyncConnection = type("AsyncConnection", (), {"__module__": "psycopg", "execute": None, "cursor": None})


async def test_what_is_no_connection_is_an_option_error_that_names_its_type(jobs: Supervisor, database: str) -> None:
    sync = create_engine("sqlite://")
    async with (
        engine_of(database) as engine,
        engine_of("sqlite+aiosqlite://") as other,
        AsyncSession(other) as elsewhere,
        aiosqlite.connect(":memory:") as db,
    ):
        with sync.connect() as blocking:
            for one in (object(), database, AsyncConnection(), sync, Session(sync), blocking, engine, Order(), db):
                with pytest.raises(OptionError, match=f"asyncpg.* not {type(one).__name__}"):
                    await jobs.enqueue("mail", connection=one)
        with pytest.raises(OptionError, match="not Connection"):
            await jobs.enqueue("mail", connection=elsewhere)
    sync.dispose()
    assert await stored(database) == (0, 0)


async def test_a_closed_connection_is_an_option_error(jobs: Supervisor, database: str) -> None:
    own = await asyncpg.connect(database)
    await own.close()
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool, engine_of(database) as engine:
        released = await pool.acquire()
        await pool.release(released)
        closed = await engine.connect()
        await closed.close()
        unbound = AsyncSession()
        for connection in (own, released, closed, engine.connect(), unbound):
            with pytest.raises(OptionError, match="connection= "):
                await jobs.enqueue("mail", connection=connection)
    assert await stored(database) == (0, 0)


async def test_a_connection_that_the_server_has_ended_is_a_store_error(jobs: Supervisor, database: str) -> None:
    async with on_asyncpg(database) as app:
        await app.begin()
        ((pid,),) = await app.execute("SELECT pg_backend_pid()")
        await ask(database, "SELECT pg_terminate_backend($1)", pid)
        with pytest.raises((StoreError, OptionError)):
            await jobs.enqueue("mail", connection=app.given)
    assert await stored(database) == (0, 0)


async def test_a_connection_to_a_database_without_jobs_is_a_schema_error(jobs: Supervisor, pg_dsn: str) -> None:
    async with on_session(pg_dsn) as app:
        with pytest.raises(StoreError, match="jobs-async migrate"):
            await jobs.enqueue("mail", connection=app.given)


# ---------------------------------------------------------------------------------------- several tasks, and codecs


async def test_one_connection_may_serve_concurrent_enqueues(jobs: Supervisor, app: Application, database: str) -> None:
    given = app.given.registry() if isinstance(app.given, async_scoped_session) else app.given
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(jobs.enqueue("mail", unique_key=f"k{number % 10}", connection=given))
    await app.commit()
    assert await stored(database) == (0, 10)


async def test_a_connection_in_use_for_something_else_is_an_option_error(jobs: Supervisor, database: str) -> None:
    async with on_asyncpg(database) as app:
        sleeping = asyncio.create_task(app.execute("SELECT pg_sleep(60)"))
        await until(lambda: asleep(database))
        with pytest.raises(OptionError, match="another operation is in progress"):
            await jobs.enqueue("mail", connection=app.given)
        sleeping.cancel()
        await asyncio.wait({sleeping})


async def asleep(dsn: str) -> list[tuple[Any, ...]]:
    return await ask(dsn, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")


async def test_a_scoped_session_is_another_one_in_each_task(jobs: Supervisor, database: str) -> None:
    """Were they taken for one, the second would wait for the first, which waits for the second."""
    async with engine_of(database) as engine, on_asyncpg(database) as holder:
        sessions = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)

        async def enqueue(key: str, gate: asyncio.Event) -> None:
            await jobs.enqueue("mail", unique_key=key, connection=sessions)
            await gate.wait()
            await sessions.rollback() if key == "gone" else await sessions.commit()
            await sessions.remove()

        await holder.begin()
        await jobs.enqueue("mail", unique_key="kept", connection=holder.given)
        gate = asyncio.Event()
        waits = asyncio.create_task(enqueue("kept", gate))
        await waiting(database)
        gate.set()
        async with asyncio.timeout(PATIENCE):
            await enqueue("gone", gate)
            await holder.rollback()
            await waits
    assert [job.unique_key for job in await jobs.find(JobQuery())] == ["kept"]


async def test_a_call_that_is_cancelled_while_it_waits_leaves_the_transaction_usable(
    jobs: Supervisor, either: Application, database: str
) -> None:
    await order(either)
    async with on_asyncpg(database) as holder:
        await holder.begin()
        await jobs.enqueue("mail", unique_key="k", connection=holder.given)
        waits = asyncio.create_task(jobs.enqueue("mail", unique_key="k", connection=either.given))
        await waiting(database)
        waits.cancel()
        await asyncio.wait({waits}, timeout=PATIENCE)
        assert waits.cancelled()
        await holder.rollback()
    await jobs.enqueue("mail", connection=either.given)
    await either.commit()
    assert await stored(database) == (1, 1)


async def test_codecs_of_the_applications_own_do_no_harm(jobs: Supervisor, database: str) -> None:
    args = {"text": 'quotes " and \\', "list": [1, 2.5, None]}
    async with on_asyncpg(database) as app:
        for kind in ("json", "jsonb"):
            await app.given.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        await app.begin()
        enqueue = partial(jobs.enqueue, "mail", args, tags=["a"], meta={"b": 1}, connection=app.given)
        first = await enqueue(unique_key="k", idempotency_key="i")
        met = await enqueue(unique_key="k")
        same = await enqueue(idempotency_key="i")
        assert {first.id, met.id, same.id} == {first.id}
        assert (met.args, same.tags, met.meta) == (args, ("a",), {"b": 1})
        newer = await enqueue(unique_key="k", unique_strategy=CANCEL)
        await app.commit()
    assert [job.args for job in await jobs.find(JobQuery())] == [args, args]
    old = await jobs.get(first.id)
    assert (old.state, len(old.errors), (await jobs.get(newer.id)).meta) == (JobState.cancelled, 1, {"b": 1})


# --------------------------------------------------------------------------------------------------- who is told when


async def test_the_event_says_that_the_transaction_may_still_be_rolled_back(
    store: PostgresStore, database: str
) -> None:
    told: list[Event] = []
    telemetry = Telemetry()
    telemetry.attach(told.append)
    jobs = Supervisor(store, queues={}, telemetry=telemetry)
    async with on_session(database) as app:
        job = await jobs.enqueue("mail", unique_key="k", connection=app.given)
        again = await jobs.enqueue("mail", unique_key="k", connection=app.given)
        assert [(type(event), event.job) for event in told if isinstance(event, JobEnqueued | JobDuplicate)] == [
            (JobEnqueued, job),
            (JobDuplicate, again),
        ]
        assert [event.in_transaction for event in told if isinstance(event, JobEnqueued)] == [True]
        await app.rollback()
    own = await jobs.enqueue("mail")
    assert told[2:] == [JobEnqueued(job=own, at=told[-1].at, in_transaction=False)]


@pytest.mark.parametrize("kind", ["asyncpg", *SQLALCHEMY])
async def test_a_commit_wakes_every_process_and_nothing_before_it_does(
    jobs: Supervisor, store: PostgresStore, database: str, kind: str
) -> None:
    ran: list[int] = []

    @worker(queue="inside")
    async def note(n: int) -> int:
        ran.append(n)
        return n

    async with (
        supervisor(database, note, queues={"inside": 1}, **ON_HINTS) as node,
        words(database, store) as said,
    ):
        await all_ears(node)
        await said()
        async with POSTGRES[kind](database) as app:
            await app.begin()
            lost = await jobs.enqueue("note", {"n": 1}, queue="inside", connection=app.given)
            assert await said() == []
            await app.rollback()
            await app.begin()
            kept = await jobs.enqueue("note", {"n": 2}, queue="inside", connection=app.given)
            assert await said() == []
            await app.commit()
        assert await node.result(kept, timeout=PATIENCE) == 2
        assert await said() == ["work inside"]
    assert ran == [2]
    assert [job.id for job in await jobs.find(JobQuery())] == [kept.id] != [lost.id]
